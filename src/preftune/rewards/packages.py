"""Rewards that other packages decide: verifiable instructions and sentiment. The extra `rewards` installs
them.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from preftune.errors import ConfigError, DataError, shown
from preftune.rewards.base import BuiltIn, at, each, need_package


@dataclass(frozen=True, kw_only=True)
class Sentiment(BuiltIn):
    """How positive a completion sounds, from -1 to 1: VADER's compound score, by its lexicon of English
    words.
    """

    def __post_init__(self) -> None:
        need_package("sentiment", "vaderSentiment", "vaderSentiment")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        analyze = SentimentIntensityAnalyzer().polarity_scores
        return [float(analyze(completion)["compound"]) for completion in completions]


@dataclass(frozen=True, kw_only=True)
class Instructions(BuiltIn):
    """Whether a completion does what the prompt's verifiable instructions ask, as the checkers of IFEval see
    it.

    The columns are those of the data set IFEval: `instruction_id_list`, and `kwargs` with one mapping per
    instruction. Thoughts up to </think> do not count. An instruction that is not known or lacks a setting is
    an error: the checkers would skip the one and draw the other at random.

    Args:
        score: "all" is 1 if every instruction is followed, else 0; "share" is the share of instructions
            followed.
        mode: "loose" also tries the completion without its first or last line and without asterisks.
    """

    score: Literal["all", "share"] = "all"
    mode: Literal["strict", "loose"] = "strict"

    def __post_init__(self) -> None:
        need_package("instructions", "if_verifiable", "if-verifiable")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("instruction_id_list", "kwargs")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        import langdetect
        from if_verifiable.common import evaluate_instructions
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

        langdetect.DetectorFactory.seed = 0  # it would guess short texts anew at each call
        count = len(completions)
        rewards: list[float | None] = []
        wanted = each(columns["instruction_id_list"], count), each(columns["kwargs"], count)
        for index, (names, settings) in enumerate(zip(*wanted, strict=True)):
            where = at(index, completions)
            settings = _checked(names, settings, INSTRUCTION_DICT, where)
            try:
                _, found = evaluate_instructions(
                    completions[index], names, settings, prompts[index], INSTRUCTION_DICT
                )
            except LookupError as error:  # of nltk, whose texts on this are many lines long
                raise ConfigError(
                    f"An instruction of {where} needs the word lists of nltk",
                    got=f"{names}, and no punkt_tab",
                    do="Fetch them once: python -m nltk.downloader punkt_tab",
                ) from error
            share = found.partial_strict if self.mode == "strict" else found.partial_loose
            rewards.append(share if self.score == "share" else float(share == 1.0))
        return rewards


def _checked(names: Any, settings: Any, known: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The settings of each instruction without empty values; an error if a checker would make something up."""
    if (
        not isinstance(names, list)
        or not names
        or not isinstance(settings, list)
        or len(settings) != len(names)
    ):
        raise DataError(
            f"The instructions of {where} are not understood",
            got=f"{shown(names)} with {shown(settings)}",
            expected="a list instruction_id_list and a list kwargs of the same length",
        )
    given = []
    for name, mine in zip(names, settings, strict=True):
        if name not in known:
            raise DataError(
                f"There is no instruction {shown(name)} for {where}", expected="one of " + ", ".join(known)
            )
        mine = {key: value for key, value in (mine or {}).items() if value is not None}
        wanted = set(inspect.signature(known[name].build_description).parameters) - {"self"}
        if mine.keys() != wanted:
            raise DataError(
                f"The instruction {name} for {where} has other settings than its checker",
                got=", ".join(sorted(mine)) or "none",
                expected=", ".join(sorted(wanted)) or "none",
            )
        given.append(mine)
    return given
