"""The verb `ask`: which completions people should compare, when they can compare only a few."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.cli.checks import check_new_file
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.commands.reward import RewardConfig, add_rewards
from preftune.data.fields import as_reward_or_none
from preftune.data.files import located, read_file
from preftune.errors import ConfigError, DataError, check_range, refuse_idle, shown
from preftune.measures.annotation import (
    AskRule,
    PairToAsk,
    closest_pair,
    different_pairs,
    disputed_pair,
    telling_pair,
    within_budget,
)
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.storage import new_file, write_jsonl
from preftune.terminal import clean_terminal
from preftune.text import plural, value_text

_WORDS = re.compile(r"\w+|[^\w\s]")
COLUMN = "ask_rewards"
"""The column of the rewards that the command computes."""
_FEW = "fewer than two different completions"
_UNKNOWN = "no two different completions with rewards"
_PER_COMPLETION = ("ended", "num_tokens", "rewards")


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """Choose the completions that people should compare: one pair of a prompt, for the prompts that matter most.

    Args:
        data: rows of a prompt and its completions, as `sample` and `reward` write them.
        output: the rows to label, *.jsonl: prompt, two completions, ask_value; `annotate` reads them.
        by: margin: the two completions with the smallest difference of rewards; ensemble: the two on which the terms
            of a weighted sum of rewards disagree most; diverse: two completions that are like the others and unlike
            each other, without any reward.
        budget: most prompts to ask about.
        reward: of the completions, computed first and kept in OUTPUT.scored.jsonl; by margin, the column `rewards`
            when not given.
        diversity: of by diverse: weight of the likeness of the two completions.
        overwrite: replace the output if it exists.
        json: print the counts as JSON.
    """

    data: str
    output: str
    by: AskRule = "margin"
    budget: int = 100
    reward: str | None = None
    diversity: float = 1.0
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "budget")
        check_range(self, "[0, inf)", "diversity")
        if not self.output.endswith(".jsonl"):
            raise ConfigError(
                "The output is a file of JSON lines", got=self.output, expected="a name that ends in .jsonl"
            )
        check_new_file(self.output, self.overwrite)
        if self.by == "diverse":
            refuse_idle(self, "by diverse", "reward", do="Leave it out: no reward is computed")
        else:
            refuse_idle(self, f"by {self.by}", "diversity", do="Leave it out, or ask --by diverse")
        if self.by == "ensemble" and self.reward is None:
            raise ConfigError(
                "An ensemble is a weighted sum of rewards, one term for each member",
                got="no reward",
                expected="--reward '1*model:A + 1*model:B'",
            )


@dataclass(frozen=True, kw_only=True)
class AskResult:
    """What was chosen."""

    output: str
    rows: int
    asked: int
    left_out: Mapping[str, int]
    value: float | None  # of the last prompt within the budget


def choose_questions(settings: AskConfig, report: Reporter) -> AskResult:
    """Write the rows to label."""
    with new_file(settings.output, settings.overwrite):
        rows = _rows(settings, report)
        left_out: Counter[str] = Counter()
        found = [_pair(settings, number, row, left_out) for number, row in enumerate(rows, start=1)]
        places = within_budget(found, settings.budget)
        if not places:
            reasons = ", ".join(f"{plural(count, 'row')} with {why}" for why, count in left_out.items())
            raise DataError(
                f"There is nothing to ask about in {settings.data}",
                got=reasons or "no rows",
                do="Draw more completions, or add rewards with: preftune reward",
            )
        chosen = [(rows[place], one) for place in places if (one := found[place]) is not None]
        write_jsonl(
            Path(settings.output), [_question(row, one) for row, one in chosen], "write the questions"
        )
    return AskResult(
        output=settings.output,
        rows=len(rows),
        asked=len(places),
        left_out=dict(left_out),
        value=chosen[-1][1].value,
    )


def _rows(settings: AskConfig, report: Reporter) -> list[dict[str, Any]]:
    """The rows, with rewards where some were asked for."""
    source = settings.data
    if settings.reward is not None:
        source = f"{settings.output}.scored.jsonl"
        add_rewards(
            RewardConfig(
                data=settings.data, reward=settings.reward, output=source, column=COLUMN, overwrite=True
            ),
            report,
        )
    rows = []
    for raw in read_file(Path(source), None):
        if isinstance(raw.value, DataError):
            raise raw.value
        texts = raw.value.get("completions")
        if (
            not isinstance(raw.value.get("prompt"), str | list)
            or not isinstance(texts, list)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise DataError(
                f"{source}, row {raw.number} gives no question",
                got=shown({name: raw.value.get(name) for name in ("prompt", "completions")}),
                expected="a prompt and a list of completions as texts, as `preftune sample` writes them",
            )
        rows.append(dict(raw.value))
    return rows


def _pair(
    settings: AskConfig, number: int, row: Mapping[str, Any], left_out: Counter[str]
) -> PairToAsk | None:
    texts = row["completions"]
    pairs = different_pairs(texts)
    if not pairs:
        left_out[_FEW] += 1
        return None
    if settings.by == "diverse":
        return telling_pair([_WORDS.findall(text) for text in texts], pairs, settings.diversity)
    column = COLUMN if settings.reward is not None else "rewards"
    if settings.by == "ensemble":
        members = row.get(f"{COLUMN}_parts", {})
        if len(members) < 2:
            raise ConfigError(
                "An ensemble has at least two members",
                got=f"reward {settings.reward!r}",
                expected="a weighted sum, one term for each member",
            )
        found = disputed_pair(members, pairs)
    else:
        rewards = row.get(column)
        if not isinstance(rewards, list) or len(rewards) != len(texts):
            raise DataError(
                f"{settings.data} has no rewards to take margins of",
                got=f"column {column} of {type(rewards).__name__}",
                expected=f"a list of {len(texts)} numbers",
                do="Add --reward NAME, or score the file with: preftune reward",
            )
        try:
            found = closest_pair([as_reward_or_none(one, column) for one in rewards], pairs)
        except DataError as error:
            raise located(settings.data, number, error) from error
    left_out[_UNKNOWN] += found is None
    return found


def _question(row: Mapping[str, Any], one: PairToAsk) -> dict[str, Any]:
    """The row with the two completions alone; what was known of each stays."""
    aside = {COLUMN, f"{COLUMN}_parts", f"{COLUMN}_steps", "completions"}
    kept = {key: value for key, value in row.items() if key not in aside}
    for key in _PER_COMPLETION:
        if isinstance(kept.get(key), list) and len(kept[key]) == len(row["completions"]):
            kept[key] = [kept[key][one.first], kept[key][one.second]]
    texts = [row["completions"][one.first], row["completions"][one.second]]
    return {**kept, "completions": texts, "ask_value": one.value}


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(AskConfig, arguments, "preftune ask", positional="data")
    found = choose_questions(settings, Reporter(quiet=settings.json))
    if settings.json:
        print_json(
            {
                "output": found.output,
                "rows": found.rows,
                "asked": found.asked,
                "left_out": dict(found.left_out),
                "value": found.value,
            }
        )
        return 0
    lines = [f"left out {plural(count, 'row')}: {why}" for why, count in found.left_out.items() if count]
    last = "" if found.value is None else f", the last with a value of {value_text(found.value)}"
    lines.append(f"{plural(found.asked, 'prompt')} of {plural(found.rows, 'row')}{last}")
    lines.append(f"{found.output}\nlabel them with: preftune annotate {found.output} --output pairs.jsonl")
    print(clean_terminal("\n".join(lines)))
    return 0
