"""Which flags make use of columns that no format uses. Flags are tried on the first rows before they are shown."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

from preftune.data.column_kinds import (
    NO_SIGNAL,
    ONE_ANSWER,
    SEEMS_ANSWER,
    SEEMS_PREFERENCE,
    SEEMS_PROMPT,
    SEEMS_REASONING,
    SEEMS_WEIGHT,
    kind_of,
    opposite,
    values_look_like_labels,
    words_of,
)
from preftune.data.column_map import REPLACED
from preftune.data.fields import ROLES, Row, is_number
from preftune.data.format_verdicts import VERDICT, sides
from preftune.data.label_words import NEGATIVE, NUMBERS, POSITIVE, label_word, verdict_word
from preftune.data.nested_fields import object_in
from preftune.data.prompts import SYSTEM
from preftune.data.turn_shapes import role_in

Stops = Mapping[str, tuple[str, object]]  # column -> (what it seems to be, a value)
Try = Callable[[str, Sequence[str], str, bool], list[str] | None]
_LONG = 40  # characters of a text that is rather an answer than a word
_SHOWN = 2  # proposals in one message
_ASKS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "problem",
    "request",
    "messages",
    "input",
    "full_text",
    "post",
    "user",
    "human",
    "user_message",
    "x",
    "ask",
    "text",
    "title",
)  # names of prompts, the likelier first
_SIDES = (("left", "right"), ("first", "second"), ("a", "b"), ("left_response", "right_response"))
_PREFIXES = ("initial_reason_steps", "prefix", "prefill", "response_prefix", "assistant_prefix")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What is known of the columns: those that stop the run, and the values of all that no format uses.

    `prompt` is the column that is used as the prompt, empty if there is none; `listed` are our names for lists of
    completions; `first` has a few values of each column.
    """

    stops: Stops
    row: Row
    form: str
    prompt: str
    listed: Sequence[str]
    first: Mapping[str, Sequence[object]] = field(default_factory=dict)
    columns: str = ""  # flags that the user gave already: every advice repeats them
    ignored: Sequence[str] = ()


def advice(material: RowFacts, trial: Try | None = None) -> str:
    """How to use the columns that stop the run, and how to ignore all of them.

    `trial` reads the first rows with flags; only flags that work are shown, with what else must be ignored.
    """
    names = [name.removesuffix(REPLACED) for name in material.stops]
    shown = _tried(material, trial) or list(_without_flags(material))
    how = "they do" if len(names) > 1 else "it does"
    flags = _flags(material.columns, "", (*material.ignored, *names))
    return ". ".join([*shown, f"If {how} not matter, use {flags}"])


def _tried(material: RowFacts, trial: Try | None) -> list[str]:
    """The proposals that work, as sentences; with a question mark where the user must fill in a value."""
    shown: list[str] = []
    signal = material.form in NO_SIGNAL
    for when, new, form in _proposals(material):
        columns = ",".join(filter(None, (material.columns, new)))
        left: list[str] = []
        if trial is not None and "?" not in new:
            tried = trial(columns, material.ignored, form, signal)
            if tried is None or (tried and trial(columns, (*material.ignored, *tried), form, signal) != []):
                continue
            left = tried
        flags = _flags(columns, form, (*material.ignored, *left))
        if not any(flags in text for text in shown):
            shown.append(f"{when}, use {flags}" + (" with a value for each ?" if "?" in new else ""))
        if len(shown) == _SHOWN:
            break
    return shown


def _flags(columns: str, form: str, ignored: Sequence[str]) -> str:
    given = (("columns", columns), ("format", form), ("ignore", ",".join(ignored)))
    return " ".join(f"--rows.{name} {shlex.quote(value)}" for name, value in given if value)


def advice_for_unknown(rows: Sequence[Row], columns: str, ignored: Sequence[str], trial: Try | None) -> str:
    """Flags for rows that no format fits."""
    flat = [dict(_flat(row)) for row in rows]
    everything = flat[0]
    first = {name: [row[name] for row in flat if name in row] for name in everything}
    asks = [name for word in _ASKS for name in everything if name.lower().split(".")[-1] == word]
    texts = [name for name, value in rows[0].items() if isinstance(value, str) and "id" not in words_of(name)]
    for ask in (asks or texts)[:3]:
        whole = _ends_with_answer(everything[ask])
        rest = {name: value for name, value in everything.items() if not f"{name}.".startswith(f"{ask}.")}
        material = RowFacts(
            stops={name: (kind, rest[name]) for name in rest if (kind := _kind(name, first[name]))},
            row=rest,
            form="completions" if whole else "prompts",
            prompt=ask,
            listed=(),
            first=first,
            columns=",".join(filter(None, (columns, f"{'messages' if whole else 'prompt'}={ask}"))),
            ignored=ignored,
        )
        if shown := _tried(material, trial):
            return ". ".join(shown)
    return "Say which column is which, as in --rows.columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN"


def _flat(value: Row, way: str = "", depth: int = 4) -> Iterator[tuple[str, object]]:
    """(path, value) of each column, and of each field inside objects and lists of one object."""
    for key, cell in value.items():
        path = f"{way}{key}"
        yield path, cell
        if depth and isinstance(cell, Mapping):
            yield from _flat(cell, f"{path}.", depth - 1)
        elif depth and isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], Mapping):
            yield from _flat(cell[0], f"{path}.0.", depth - 1)


def _kind(name: str, values: Sequence[object]) -> str:
    leaf, value = name.rpartition(".")[2], values[0]
    if isinstance(value, Mapping):
        return SEEMS_ANSWER if ROLES.get(str(role_in(value))) == "assistant" else ""
    if isinstance(value, list):
        return ""
    if ROLES.get(leaf.lower()) == "assistant":
        return SEEMS_ANSWER
    kind = kind_of(leaf, "prompts")
    if kind in (SEEMS_PREFERENCE, SEEMS_ANSWER):
        return SEEMS_ANSWER if isinstance(value, str) and len(value) > _LONG else kind
    return SEEMS_PREFERENCE if values_look_like_labels(values, "prompts") else ""


def _ends_with_answer(value: object) -> bool:
    turns = value if isinstance(value, list) else []
    return bool(turns) and ROLES.get(str(role_in(turns[-1])).lower()) == "assistant"


def _proposals(material: RowFacts) -> Iterator[tuple[str, str, str]]:
    """(condition, --rows.columns, --rows.format), the most likely first."""
    if material.form in NO_SIGNAL:
        yield from _of_two(material)
        yield from _of_lists(material)
    yield from _of_one(material)


# --- two answers ---


def _of_two(material: RowFacts) -> Iterator[tuple[str, str, str]]:
    row = material.row
    texts = [name for name, value in row.items() if _is_answer(value)]
    if opposites := [pair for pair in permutations(texts, 2) if opposite(*pair)]:
        for good, bad in opposites:
            yield f"If {good} holds the preferred answers", f"chosen={good},rejected={bad}", ""
        return
    found = sides(row)
    if found is None:
        pairs = [pair for pair in combinations(texts, 2) if tuple(map(str.lower, pair)) in _SIDES]
        found = next(((pair, ("a", "b")) for pair in pairs), None)
    if found is None and material.form == "prompts":
        answers = [name for name in texts if material.stops.get(name, ("",))[0] == SEEMS_ANSWER]
        found = next(((pair, ("a", "b")) for pair in combinations(answers, 2) if _is_twin(*pair)), None)
    if found is None:
        return
    (first, second), ends = found
    for name, value in row.items():
        if name in (first, second) or not isinstance(value, (str, int, float)) or isinstance(value, bool):
            continue
        seen = _short(material.first.get(name, [value]))
        kind = material.stops.get(name, ("",))[0]
        seems = (kind == SEEMS_PREFERENCE and found == sides(row)) or name.lower() in (*VERDICT, "label")
        if seems and 1 <= len(seen) <= 6:
            known = all(not isinstance(verdict_word(item, ("a", "b")), str) for item in seen)
            meanings = "" if known else "{" + ",".join(f"{item}:?" for item in seen) + "}"
            yield (
                f"If {name} says which answer is better"
                + ("" if known else f" ({ends[0]}, {ends[1]} or tie)"),
                f"response_a={first},response_b={second},winner={name}{meanings}"
                if known or found != sides(row)
                else f"winner={name}{meanings}",
                "",
            )
    for one, other in ((first, second), (second, first)):
        yield f"If {one} is always the better one", f"chosen={one},rejected={other}", ""


def _is_twin(first: str, second: str) -> bool:
    """Whether two names differ in one word alone: response_j and response_k, human_answer and ai_answer."""
    left, right = (name.lower().replace("-", "_").split("_") for name in (first, second))
    return len(left) == len(right) > 1 and sum(a != b for a, b in zip(left, right, strict=True)) == 1


def _is_answer(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and (
            isinstance(value[0], (Mapping, list)) or (len(value) == 1 and isinstance(value[0], str))
        )
    return (isinstance(value, str) and not is_number(value)) or role_in(value) is not None


def _short(values: Sequence[object]) -> list[object]:
    """The different values, if they are short words or numbers."""
    found = list(dict.fromkeys(str(value) for value in values if value not in (None, "")))
    return [] if any(len(text) > 24 or set(text) & set(",{}:?") for text in found) else list(found)


# --- lists of answers ---


def _of_lists(material: RowFacts) -> Iterator[tuple[str, str, str]]:
    row, stops = material.row, material.stops
    lists = [name for name, value in row.items() if isinstance(value, list) and len(value) > 1]
    for name in lists:
        answers = row[name]
        assert isinstance(answers, list)
        entry = answers[0]
        if isinstance(entry, Mapping):
            if role_in(entry) is not None:
                continue
            yield from _of_entries(name, entry, material)
        elif not isinstance(entry, str):
            continue
        texts = "" if name in material.listed and not isinstance(entry, Mapping) else f"completions={name}"
        if isinstance(entry, Mapping):
            texts += f".{_text_key(entry)}"
        texts += "," if texts else ""
        for other, value in row.items():
            if other == name or isinstance(value, bool):
                continue
            if isinstance(value, list) and len(value) == len(answers) and not _is_answer(value):
                field_ = _field(other, value)
                yield f"If {other} says how good each of the {name} is", f"{texts}{field_}={other}", ""
            elif other in stops and _is_place(material.first.get(other, [value]), len(answers)):
                values = [int(float(str(item))) for item in material.first.get(other, [value])]
                ones = ",".join(f"{k + 1}:{k}" for k in range(len(answers)))
                if max(values) < len(answers):
                    yield (
                        f"If {other} is the place of the best of the {name}, counted from 0",
                        f"{texts}best={other}",
                        "",
                    )
                if min(values) > 0:
                    yield "If it is counted from 1", f"{texts}best={other}{{{ones}}}", ""


def _is_place(values: Sequence[object], count: int) -> bool:
    numbers = [value for value in values if value not in (None, "")]
    return bool(numbers) and all(
        is_number(str(value)) and float(str(value)) in range(count + 1) for value in numbers
    )


def _text_key(entry: Row) -> str:
    return next((key for key, value in entry.items() if isinstance(value, str)), "text")


def _of_entries(name: str, entry: Row, material: RowFacts) -> Iterator[tuple[str, str, str]]:
    """For a list of objects with a text and a number, word or flag each."""
    inside = [path.removeprefix(f"{name}.") for path in material.stops if path.startswith(f"{name}.")]
    text = next((key for key, value in entry.items() if isinstance(value, str) and key not in inside), "text")
    rest = [key for key, value in entry.items() if key != text and isinstance(value, (bool, int, float))]
    for told in dict.fromkeys([key for key in inside if key in entry] + rest):
        field_ = _field(told, [entry[told]])
        columns = f"completions={name}.{text},{field_}={name}.{told}"
        yield f"If {told} says how good each of the {name} is", columns, ""


def _field(name: str, values: Sequence[object]) -> str:
    if "rank" in name.lower():
        return "ranks"
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return "rewards" if numbers else "labels"


# --- one column ---


def _of_one(material: RowFacts) -> Iterator[tuple[str, str, str]]:
    stops, form = material.stops, material.form
    told = [name for name, (kind, _) in stops.items() if kind == SEEMS_PREFERENCE]
    answers = [
        name.removesuffix(REPLACED)
        for name, (kind, value) in stops.items()
        if kind == SEEMS_ANSWER and isinstance(value, (str, list, Mapping))
    ]
    if form in NO_SIGNAL:
        for name in told:
            for answer in answers or [""]:
                yield from _of_signal(name, stops[name][1], answer, material)
        texts = answers or [name for name in told if isinstance(stops[name][1], str)]
        if len(texts) == 1 and len(told) == (not answers):
            yield "If every row is an answer to learn from", f"completion={texts[0]}", "completions"
    for name, (kind, _) in stops.items():
        name = name.removesuffix(REPLACED)
        if kind == SEEMS_REASONING and form in ONE_ANSWER:
            yield "If the model shall learn to write it", f"reasoning_content={name}", ""
        if kind == SEEMS_PROMPT and "." not in name:
            yield _of_prompt(name, material.prompt or "prompt")
        if form == "pairs" and kind == SEEMS_PREFERENCE and "." not in name:
            yield from _of_pair(name, material)


def _of_signal(name: str, value: object, answer: str, material: RowFacts) -> Iterator[tuple[str, str, str]]:
    """A column that may be a label or a reward, with the column of the answer where none is used."""
    if isinstance(value, (list, Mapping)):
        return
    texts = f"completion={answer}," if answer else ""
    values = material.first.get(name, [value])
    words = {label_word(item) for item in values if item not in (None, "")}
    if words and words <= POSITIVE | NEGATIVE:
        label = f"If {name} says which completions are good", f"{texts}label={name}", ""
        reward = f"If {name} is a reward", f"{texts}reward={name}", ""
        numbers = words <= NUMBERS and not any(isinstance(item, bool) for item in values)
        if numbers and len(words) == 1:
            yield reward
        yield label
        if numbers and len(words) > 1:
            yield reward
    elif words and all(is_number(word) for word in words):
        yield f"If {name} is a reward", f"{texts}reward={name}", ""
        yield "If it is a rating from 1 to 5", f"{texts}label={name}{{>=4:1,<=2:-1,>2:0}}", ""
    elif seen := _short(values):
        meanings = ",".join(f"{item}:?" for item in seen[:6])
        yield (
            f"If {name} says which completions are good (1) and bad (-1)",
            f"{texts}label={name}{{{meanings}}}",
            "",
        )
    elif isinstance(value, (bool, int, float)):
        yield f"If {name} says which completions are good", f"{texts}label={name}", ""


def _of_pair(name: str, material: RowFacts) -> Iterator[tuple[str, str, str]]:
    """A label next to chosen and rejected may say which of the two is better."""
    words = {label_word(item) for item in material.first.get(name, ())}
    chosen, rejected = "chosen", "rejected"
    if words and words <= {"1", "0", "1.0", "0.0"}:
        yield (
            f"If {name} is 1 where chosen is better and 0 where rejected is",
            f"response_a={chosen},response_b={rejected},winner={name}{{1:a,0:b}}",
            "",
        )


def _of_prompt(name: str, prompt: str) -> tuple[str, str, str]:
    if name.lower().startswith("sys") or name.lower() in SYSTEM:
        return "If it is the system prompt", f"system={name}", ""
    if name.lower() == "functions":
        return "If these are the tools", f"tools={name}", ""
    both = f"{prompt}+{name}" if name.lower() in _PREFIXES else f"{name}+{prompt}"
    return "To join it with the prompt", f"prompt={both}", ""


# --- where no flag helps ---


def _without_flags(material: RowFacts) -> Iterator[str]:
    for name, (kind, value) in material.stops.items():
        inside = "." in name and object_in(material.row.get(name.partition(".")[0])) is None
        if kind == SEEMS_WEIGHT:
            yield "Rows have no weights here: leave out the rows that shall not count"
        elif kind == SEEMS_REASONING:
            yield "If an answer begins with it, write it into that answer's turn as reasoning_content"
        elif kind == SEEMS_PROMPT and inside:
            yield "Write it into the text of the turn if the model shall see it"
        elif kind == SEEMS_PREFERENCE and inside and material.form in NO_SIGNAL:
            yield "Write it into a column of the row, such as label or reward"
        elif kind == SEEMS_ANSWER and isinstance(value, list):
            yield f"Nothing says which of the {name} are good. Add rewards with `preftune reward`"
        else:
            continue
        return
