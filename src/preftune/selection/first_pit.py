"""Answers cut at their first wrong step, by the values of their steps. Pure."""

import math
from collections.abc import Sequence
from dataclasses import replace

from preftune.errors import DataError, shown
from preftune.text import line_steps
from preftune.types import Completion, Record


def cut_at_first_pit(records: Sequence[Record], column: str) -> list[Record]:
    """The records with each completion below the best reward of its prompt cut behind the first of its steps with
    the lowest value.

    `column` holds a list of numbers for each completion, one a step (a line), or None, which leaves it whole. Setlur
    et al., "RL on Incorrect Synthetic Data", 2024, arXiv 2406.14532, pair such beginnings of incorrect answers
    with correct answers (from a secondary source). What was cut has not ended.
    """
    best: dict[object, float] = {}
    for record in records:
        known = [reward for reward in record.rewards if reward is not None]
        best[record.identity] = max([*known, best.get(record.identity, -math.inf)])
    return [_cut(record, column, best[record.identity]) for record in records]


def _cut(record: Record, column: str, best: float) -> Record:
    values = record.columns.get(column)
    if not isinstance(values, list) or len(values) != len(record.completions):
        raise DataError(
            f"{record.origin}: the column {column} does not fit the completions",
            got="no such column" if column not in record.columns else shown(values, 60),
            expected=f"a list of {len(record.completions)}, each a list of numbers or null",
            do='Make it with: preftune reward FILE --reward "progress(values=q, ...)"',
        )
    completions, ended = list(record.completions), list(record.ended or (True,) * len(record.completions))
    for k, (text, reward) in enumerate(zip(record.completions, record.rewards, strict=True)):
        if values[k] is None or reward is None or reward >= best:
            continue
        cut = _first_pit(text, values[k], f"{record.origin}, completion {k + 1}")
        if cut != text:
            completions[k], ended[k] = cut, False
    return replace(record, completions=tuple(completions), ended=tuple(ended))


def _first_pit(text: Completion, values: object, where: str) -> str:
    steps = line_steps(text) if isinstance(text, str) else []
    numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if not steps or len(numbers) != len(steps) or not all(isinstance(one, int | float) for one in numbers):
        raise DataError(
            f"{where}: the values do not fit the steps of the answer",
            got=shown(values, 60),
            expected=f"{len(steps)} numbers, one for each line that is not blank",
        )
    return "".join(steps[: list(numbers).index(min(numbers)) + 1]).rstrip("\n")
