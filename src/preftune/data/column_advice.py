"""Which flags make use of columns that no format uses."""

from collections.abc import Mapping, Sequence
from itertools import permutations

from preftune.data.column_kinds import (
    NO_SIGNAL,
    ONE_ANSWER,
    SEEMS_ANSWER,
    SEEMS_PREFERENCE,
    SEEMS_PROMPT,
    SEEMS_REASONING,
    SEEMS_WEIGHT,
    opposite,
)
from preftune.data.column_map import REPLACED
from preftune.data.fields import Row
from preftune.data.format_verdicts import sides
from preftune.data.nested_fields import object_in
from preftune.data.prompts import SYSTEM

Stops = Mapping[str, tuple[str, object]]  # column -> (what it seems to be, a value)


def advice(stops: Stops, row: Row, form: str, prompt: str, listed: Sequence[str]) -> str:
    """How to use the columns that stop the run, and how to ignore all of them.

    `row` has the values of all columns without a role, by the user's names; `prompt` is the column that is used as
    the prompt, `listed` are our names for lists of completions.
    """
    names = [name.removesuffix(REPLACED) for name in stops]
    ignore = (
        f"If {'they do' if len(names) > 1 else 'it does'} not matter, use --rows.ignore {','.join(names)}"
    )
    how = (
        _of_two(stops, row, form) or _of_lists(stops, row, form, listed) or _of_one(stops, row, form, prompt)
    )
    return f"{how}. {ignore}" if how else ignore


def _of_two(stops: Stops, row: Row, form: str) -> str:
    """For two columns with an answer each."""
    if form not in NO_SIGNAL:
        return ""
    texts = [name for name, value in row.items() if _is_answer(value)]
    for good, bad in permutations(texts, 2):
        if opposite(good, bad):
            return f"If {good} holds the preferred answers, use --rows.columns chosen={good},rejected={bad}"
    found = sides(row)
    if found is None:
        return ""
    (first, second), ends = found
    for name, (kind, value) in stops.items():
        if kind == SEEMS_PREFERENCE and isinstance(value, (str, int, float)) and "." not in name:
            return (
                f"If {name} says which answer is better, use --rows.columns "
                f"'winner={name}{{VALUE:{ends[0]},OTHER:{ends[1]}}}'"
            )
    return f"If one of them is always the better one, use --rows.columns chosen={first},rejected={second}"


def _is_answer(value: object) -> bool:
    many = isinstance(value, list) and bool(value) and isinstance(value[0], (Mapping, list))
    return isinstance(value, str) or many


def _of_lists(stops: Stops, row: Row, form: str, listed: Sequence[str]) -> str:
    """For a list of answers, with a list of numbers or with numbers inside."""
    lists = [
        name for name, (kind, value) in stops.items() if kind == SEEMS_ANSWER and isinstance(value, list)
    ]
    lists += [name for path in stops if isinstance(row.get(name := path.partition(".")[0]), list)]
    if not lists or form not in NO_SIGNAL:
        return ""
    name = lists[0]
    answers = row[name]
    assert isinstance(answers, list)
    texts = "" if name in listed else f"completions={name},"
    for other, value in row.items():
        if other != name and isinstance(value, list) and len(value) == len(answers):
            field = _field(other, value)
            return (
                f"If {other} says how good each of the {name} is, use --rows.columns {texts}{field}={other}"
            )
    if answers and isinstance(answers[0], Mapping):
        inside = [path.removeprefix(f"{name}.") for path in stops if path.startswith(f"{name}.")]
        if told := _of_entries(name, answers[0], inside):
            return told
    if any(isinstance(value, (int, float)) and kind == SEEMS_PREFERENCE for kind, value in stops.values()):
        return f"Write a column rewards or labels with one value for each of the {name}: an index is not read"
    return f"Nothing says which of the {name} are good. Add rewards with `preftune reward`"


def _of_entries(name: str, entry: Row, inside: Sequence[str]) -> str:
    """For a list of objects with a text and a number, word or flag each."""
    text = next((key for key, value in entry.items() if isinstance(value, str) and key not in inside), "text")
    told = next((key for key in inside if key in entry), None) or next(
        (key for key, value in entry.items() if key != text and value is not None), None
    )
    if told is None:
        return ""
    field = _field(told, [entry[told]])
    how = f"completions={name}.{text},{field}={name}.{told}"
    return f"If {told} says how good each of the {name} is, use --rows.columns {how}"


def _field(name: str, values: Sequence[object]) -> str:
    if "rank" in name.lower():
        return "ranks"
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return "rewards" if numbers else "labels"


def _of_one(stops: Stops, row: Row, form: str, prompt: str) -> str:
    """For the first of the columns."""
    kinds = {kind: name for name, (kind, _) in reversed(list(stops.items()))}
    name, (kind, value) = next(iter(stops.items()))
    name = name.removesuffix(REPLACED)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if "." in name and kind == SEEMS_PREFERENCE and not _is_object(row.get(name.partition(".")[0])):
        return "Write it into a column of the row, such as label or reward" if form in NO_SIGNAL else ""
    if kind == SEEMS_ANSWER and SEEMS_PREFERENCE in kinds and "." not in kinds[SEEMS_PREFERENCE]:
        told = stops[kinds[SEEMS_PREFERENCE]][1]
        field = "reward" if isinstance(told, (int, float)) and not isinstance(told, bool) else "label"
        return f"Say what they are, as in --rows.columns completion={name},{field}={kinds[SEEMS_PREFERENCE]}"
    if kind == SEEMS_ANSWER:
        return f"Say what it is, as in --rows.columns completion={name}"
    if kind == SEEMS_WEIGHT:
        return "Rows have no weights here: leave out the rows that shall not count"
    if kind == SEEMS_REASONING:
        if form in ONE_ANSWER:
            return f"If the model shall learn to write it, use --rows.columns reasoning_content={name}"
        return "If an answer begins with it, write it into that answer's turn as reasoning_content"
    if kind == SEEMS_PROMPT:
        return _of_prompt(name, prompt)
    if form in NO_SIGNAL and number:
        return (
            f"If {name} is a reward, use --rows.columns reward={name}; if it is a label, use "
            f"--rows.columns 'label={name}{{>=4:1,<=2:-1,3:0}}'"
        )
    if form in NO_SIGNAL:
        return f"If {name} says which completions are good, use --rows.columns label={name}"
    return "" if "." in name else f"Say what {name} is with --rows.columns FIELD={name}"


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping) or object_in(value) is not None


def _of_prompt(name: str, prompt: str) -> str:
    if "." in name:
        return "Write it into the text of the turn if the model shall see it"
    if name.lower().startswith("sys") or name.lower() in SYSTEM:
        return f"If it is the system prompt, use --rows.columns system={name}"
    if name.lower() == "functions":
        return f"If these are the tools, use --rows.columns tools={name}"
    return f"To join it with the prompt, use --rows.columns prompt={name}+{prompt}"
