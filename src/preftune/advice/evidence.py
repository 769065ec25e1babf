"""The measured numbers that advice rests on, and what the user can afford.

Nothing here measures: numbers come in and go out as JSON.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from preftune.errors import ConfigError
from preftune.spec import suggestion

SHARES = ("best_of_data", "zero_spread", "noise", "length_bias", "overlap", "duplicates", "leakage")
COUNT_FIELDS = ("num_prompts", "num_pairs", "samples", "steps")
SIZE_FIELDS = ("completions_per_prompt", "completion_tokens", "reward_spread")
ANSWERS = ("can_reward", "can_sample", "can_hold_reference", "keep_length")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a task; None where it is unknown.

    Args:
        num_prompts: prompts of the data.
        num_pairs: pairs of a chosen and a rejected completion.
        completions_per_prompt: mean number of completions of a prompt.
        completion_tokens: mean length of a completion.
        off_policy: mean logp per token of own samples less that of the data's completions, under the
            reference, in nats. Above 0 the data are less likely than what the model would write.
        best_of_data: mean over prompts of P(reward of an own sample < reward of the data's best completion),
            ties half.
        best_of_n: for each n the mean over prompts of the expected best reward of n own samples.
        reward_spread: mean standard deviation of own rewards within a prompt.
        zero_spread: share of prompts whose own rewards are all the same.
        noise: an upper estimate of the share of pairs whose sides are exchanged, in [0, 1].
        length_bias: share of pairs whose chosen completion is the longer one, ties half; 0.5 is none.
        overlap: mean share of tokens that the two sides of a pair have in common.
        duplicates: share of rows that repeat another.
        leakage: share of held-out rows whose prompt is trained on.
        can_reward: whether a reward can score own samples.
        can_sample: whether own samples can be drawn in training.
        samples: budget of own samples.
        steps: budget of gradient steps.
        can_hold_reference: whether a reference can be scored, at the price of one pass over the data or of
            its memory.
        keep_length: whether answers must not grow longer, though longer answers are preferred in the data.
    """

    num_prompts: int | None = None
    num_pairs: int | None = None
    completions_per_prompt: float | None = None
    completion_tokens: float | None = None
    off_policy: float | None = None
    best_of_data: float | None = None
    best_of_n: Mapping[int, float] | None = None
    reward_spread: float | None = None
    zero_spread: float | None = None
    noise: float | None = None
    length_bias: float | None = None
    overlap: float | None = None
    duplicates: float | None = None
    leakage: float | None = None
    can_reward: bool | None = None
    can_sample: bool | None = None
    samples: int | None = None
    steps: int | None = None
    can_hold_reference: bool | None = None
    keep_length: bool | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _check(field.name, value)

    def measured(self) -> tuple[str, ...]:
        """The names of all fields that have a value."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def with_answers(self, **answers: bool | int | None) -> "Evidence":
        """The same, where the user answers otherwise; None leaves what was known."""
        return replace(self, **{name: value for name, value in answers.items() if value is not None})  # type: ignore[arg-type]


def evidence_from(content: object, where: str) -> Evidence:
    """From JSON; a key that is not known, and a value that is none, are refused with a sentence that names
    `where`.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{where} contains no evidence",
            got=content,
            expected="an object with the evidence's names and numbers",
        )
    known = [field.name for field in fields(Evidence)]
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where} has evidence of an unknown name",
                got=str(key),
                expected=", ".join(known),
                do=suggestion(str(key), known),
            )
    values: dict[str, Any] = dict(content)
    if isinstance(values.get("best_of_n"), Mapping):
        values["best_of_n"] = {_whole(n, where): value for n, value in values["best_of_n"].items()}
    for name, value in values.items():
        if value is not None:
            _check(name, value)
            if name not in (*COUNT_FIELDS, *ANSWERS):  # JSON writes 1 for 1.0
                values[name] = (
                    {n: float(best) for n, best in value.items()} if name == "best_of_n" else float(value)
                )
    return Evidence(**values)


def read_evidence(text: str, where: str) -> Evidence:
    """From the text of a JSON file: what `preftune diagnose data` writes, which holds it as `evidence`, or
    the evidence alone.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not valid JSON",
            got=str(error).partition("; use")[0],
            do="`preftune diagnose data --output` writes such a file",
        ) from error
    if isinstance(content, Mapping) and "evidence" in content:
        content = content["evidence"]
    return evidence_from(content, where)


def evidence_json(evidence: Evidence) -> dict[str, Any]:
    """All fields by their names; null where nothing is known."""
    found = {field.name: getattr(evidence, field.name) for field in fields(evidence)}
    if evidence.best_of_n is not None:
        found["best_of_n"] = {str(n): value for n, value in evidence.best_of_n.items()}
    return found


def _whole(text: object, where: str) -> int:
    try:
        return int(str(text))
    except ValueError as error:
        raise ConfigError(
            f"{where}, best_of_n has a key that is not a number of samples", got=text, expected="1, 2, 4, ..."
        ) from error


def _check(name: str, value: object) -> None:
    """Refuses what a field cannot be."""
    if name == "best_of_n":
        good = isinstance(value, Mapping) and all(n >= 1 and _is_number(best) for n, best in value.items())
        expected = "a finite reward for each number of samples"
    elif name in ANSWERS:
        good, expected = isinstance(value, bool), "true or false"
    elif name in COUNT_FIELDS:
        good, expected = (
            isinstance(value, int) and not isinstance(value, bool) and value >= 0,
            "a whole number of at least 0",
        )
    else:
        low, high, expected = -math.inf, math.inf, "a finite number"
        if name in SHARES:
            low, high, expected = 0, 1, "a number in [0, 1]"
        elif name in SIZE_FIELDS:
            low, expected = 0, "a finite number of at least 0"
        good = _is_number(value) and low <= value <= high  # type: ignore[operator]
    if not good:
        raise ConfigError(f"The evidence {name} has an invalid value", got=value, expected=expected)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
