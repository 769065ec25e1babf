"""Rows with labels or values of steps, as beginnings of answers with a number each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preftune.data.fields import described
from preftune.errors import DataError, shown
from preftune.text import line_steps

STEP_LAYOUTS = {
    "values": "prompt, completions (whole answers) and rewards_steps (numbers, one for each line), as `preftune reward` "
    "writes them",
    "labels": "prompt, completions (the steps of one answer) and labels (true or false, or numbers), as in TRL",
    "Math-Shepherd": "input and label: the question and its steps, each with a mark behind it (ки; + or - in label)",
    "PRM800K": "question and label.steps: each step with its alternatives and their ratings",
}
STEPS_COLUMN = "rewards_steps"
_MARK = "ки"
_SHEPHERD_STEP = re.compile(r"Step\s*1\s*:")

StepRow = dict[str, Any]
"""{prompt, completions, rewards, ended}: beginnings of one or more answers to a prompt."""


def step_layout(row: Mapping[str, Any]) -> str | None:
    """The layout of a row, a key of STEP_LAYOUTS."""
    if STEPS_COLUMN in row:
        return "values"
    if isinstance(row.get("labels"), list) and isinstance(row.get("completions"), list):
        return "labels"
    if isinstance(row.get("input"), str) and isinstance(row.get("label"), str):
        return "Math-Shepherd"
    if isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping):
        return "PRM800K"
    return None


def step_rows(row: Mapping[str, Any]) -> Iterator[StepRow]:
    """The beginnings that a row gives; none for a row whose answers have no number."""
    layout = step_layout(row)
    if layout is None:
        raise DataError(
            "The row has no labels or values of steps",
            got="the columns " + ", ".join(map(str, row)),
            expected="; or ".join(f"{name}: {what}" for name, what in STEP_LAYOUTS.items()),
        )
    read = {"values": _values, "labels": _labels, "Math-Shepherd": _shepherd, "PRM800K": _prm}[layout]
    for prompt, beginnings in read(row):
        kept = [(text.rstrip("\n"), number) for text, number in beginnings if text.strip()]
        if kept:
            yield {
                "prompt": prompt,
                "completions": [text for text, _ in kept],
                "rewards": [number for _, number in kept],
                "ended": [False] * len(kept),
            }


_Beginnings = list[tuple[str, float]]


def _values(row: Mapping[str, Any]) -> Iterator[tuple[Any, _Beginnings]]:
    texts, steps = row.get("completions"), row[STEPS_COLUMN]
    if not isinstance(texts, list) or not isinstance(steps, list) or len(texts) != len(steps):
        raise DataError(
            f"The column {STEPS_COLUMN} does not fit the completions",
            got=described(steps),
            expected="a list with a list of numbers for each completion",
        )
    for text, numbers in zip(texts, steps, strict=True):
        if numbers is None:
            continue
        lines = line_steps(text) if isinstance(text, str) else []
        if not isinstance(numbers, list) or len(numbers) != len(lines):
            raise DataError(
                "The values do not fit the steps of an answer",
                got=shown(numbers, 60),
                expected=f"{len(lines)} numbers, one for each line that is not blank",
            )
        yield row["prompt"], _joined("", lines, [_number(one) for one in numbers])


def _labels(row: Mapping[str, Any]) -> Iterator[tuple[Any, _Beginnings]]:
    steps, labels = row["completions"], row["labels"]
    if len(steps) != len(labels) or not all(isinstance(step, str) for step in steps):
        raise DataError(
            "The labels do not fit the steps",
            got=f"{len(labels)} labels and {len(steps)} steps",
            expected="a text and a label for each step",
        )
    yield row["prompt"], _joined("\n", steps, [_number(one) for one in labels])


def _shepherd(row: Mapping[str, Any]) -> Iterator[tuple[Any, _Beginnings]]:
    """Steps end in the mark of `input`, in whose place `label` has + or -."""
    given, marked = row["input"], row["label"]
    pieces, numbers, place = given.split(_MARK), [], 0
    for piece in pieces[:-1]:
        place += len(piece)
        sign = marked[place : place + 1]
        if marked[place - len(piece) : place] != piece or sign not in ("+", "-"):
            raise DataError(
                "The label does not have the text of the input with + or - in the place of each mark",
                got=shown(marked[place : place + 20]),
                expected="+ or -",
            )
        numbers.append(float(sign == "+"))
        place += 1
    start = _SHEPHERD_STEP.search(pieces[0])
    if not numbers or start is None:
        raise DataError("The input has no steps", got=shown(given, 60), expected=f"Step 1: ... {_MARK}")
    steps = [piece.strip() for piece in [pieces[0][start.start() :], *pieces[1:-1]]]
    yield given[: start.start()].strip(), _joined("\n", steps, numbers)


def _prm(row: Mapping[str, Any]) -> Iterator[tuple[Any, _Beginnings]]:
    """Each alternative of a step follows the chosen ones before it; a rating of 0 (neutral) counts as right, as in
    Lightman et al.
    """
    prompt, steps = row["question"].get("problem"), row["label"].get("steps")
    if not isinstance(prompt, str) or not isinstance(steps, list):
        raise DataError(
            "The row is not of PRM800K", got=described(steps), expected="question.problem, label.steps"
        )
    before: list[str] = []
    found: _Beginnings = []
    for step in steps:
        several = step.get("completions") or []
        for one in several:
            if one.get("rating") is not None:
                found.append(("\n".join([*before, one["text"]]), float(one["rating"] >= 0)))
        chosen = step.get("human_completion") or (
            several[step["chosen_completion"]] if step.get("chosen_completion") is not None else None
        )
        if chosen is None:
            break
        before.append(chosen["text"])
    yield prompt, found


def _joined(between: str, steps: Sequence[str], numbers: Sequence[float]) -> _Beginnings:
    return [(between.join(steps[: k + 1]), number) for k, number in enumerate(numbers)]


def _number(value: object) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    raise DataError("A step has no label", got=described(value), expected="true, false, or a number")
