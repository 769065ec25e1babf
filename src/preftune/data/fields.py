"""The fields of a row, checked: text, turns of a dialogue, labels, numbers. Errors state field, expected and
got.

The caller adds the file and the row to the error.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import TypeVar

from preftune.data.turn_extras import turn_extras, with_joined_parts
from preftune.data.turn_shapes import CONTENT_KEYS, exchanges_of, keys_of, role_in, turns_of_exchanges
from preftune.errors import DataError, shown
from preftune.types import SOURCES, Completion, Message, Source

Row = Mapping[str, object]
T = TypeVar("T")

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_output": "tool",
    "function_response": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_CALLS = ("tool_call", "function_call")  # the roles of a call in files of ms-swift and of LLaMA-Factory
_REPR = re.compile(r"\s*\[?\s*\{\s*u?'(role|content|from|value)'\s*:")
_UNKNOWN_NUMBERS = frozenset(("", "n/a", "na", "none", "null", "nan"))
_NOT_RENDERED = ("image", "images", "audio", "audios", "video", "videos")


class ColumnFault(DataError):
    """A fault of a whole column, which no other row can mend: it stops the run even where bad rows are skipped."""


def described(value: object) -> str:
    """A value with its type, for a message."""
    return "nothing (null)" if value is None else f"{type(value).__name__} {shown(value)}"


def first_key(row: Row, *names: str) -> str:
    """The first of the names that the row fills, else the first that it has at all, else the first name."""
    for name in names:
        if row.get(name) is not None:
            return name
    return next((name for name in names if name in row), names[0])


def has(row: Row, *names: str) -> bool:
    """Whether the row fills any of the fields."""
    return any(row.get(name) is not None for name in names)


def value_of(row: Row, name: str) -> object:
    """The value of a field that must be there."""
    if row.get(name) is not None:
        return row[name]
    got = "null" if name in row else "the columns " + (", ".join(map(str, row)) or "none")
    raise DataError(f"The field {name} is missing", got=got, expected=f"a value for {name}")


def as_text(value: object, name: str) -> str:
    """A string that can be written as UTF-8; it may be empty."""
    if not isinstance(value, str):
        raise DataError(f"The field {name} has the wrong type", got=described(value), expected="text")
    if "'" in value and _REPR.match(value):
        raise ColumnFault(
            f"The field {name} holds turns as Python writes them (with single quotes), which is not JSON",
            got=shown(value),
            expected="a list of turns, or its JSON text",
            do="Write the column with json.dumps, or save the rows as .jsonl or .parquet",
        )
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        near = value[max(0, error.start - 20) : error.start + 20]
        raise DataError(
            f"The field {name} holds half of a surrogate pair", got=shown(near), expected="valid Unicode"
        ) from error
    return value


def as_completion(value: object, name: str) -> Completion:
    """A completion with text in it: a string, the one turn of the assistant, or the turns of a trajectory."""
    value = turns_of_text(value)
    many = isinstance(value, (list, Mapping))
    return not_blank(completion_of(as_turns(value, name), name) if many else as_text(value, name), name)


def turns_of_text(value: object) -> object:
    """The turns that JSON text holds, as tables write them; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        turns = [parsed] if isinstance(parsed, Mapping) else parsed
        if turns and all(isinstance(turn, Mapping) and _is_turn(turn) for turn in turns):
            return parsed
    return value


def _is_turn(turn: Mapping) -> bool:
    role = role_in(turn)
    return (
        isinstance(role, str) and role.lower() in ROLES and bool({*CONTENT_KEYS, "tool_calls"} & turn.keys())
    )


def completion_of(turns: tuple[Message, ...], name: str) -> Completion:
    """The text of a single answer, or the turns of a trajectory."""
    if len(turns) == 1 and turns[0].role == "assistant":  # the usual case
        return turns[0].content if turns[0].extras is None else turns
    answers = [turn.role == "assistant" for turn in turns]
    if not (answers[0] and answers[-1]) or (True, True) in pairwise(answers):
        raise DataError(
            f"The field {name} is not one answer of the assistant, nor a trajectory",
            got="the turns " + ", ".join(turn.role for turn in turns),
            expected="text, one assistant turn, or assistant turns with turns of a user or a tool between",
        )
    return turns


def is_blank(completion: Completion) -> bool:
    """Whether an answer has neither text nor a tool call in it."""
    if isinstance(completion, str):
        return not completion.strip()
    return not all(turn.content.strip() or turn.tool_calls for turn in completion if turn.role == "assistant")


def not_blank(completion: Completion, name: str) -> Completion:
    """The completion, or an error if an answer of it has no text."""
    if is_blank(completion):
        raise DataError(
            f"The field {name} is empty", got=shown(completion), expected="a completion with text in it"
        )
    return completion


def as_turns(value: object, name: str) -> tuple[Message, ...]:
    """The turns of a dialogue from {role, content} or {from, value} objects; one object is one turn."""
    value = turns_of_text(value)
    if type(value) is list and value:  # the usual turns first, which are nearly all
        usual = [_usual_turn(turn) for turn in value]
        if all(usual):
            return tuple(usual)  # type: ignore[arg-type]
    if exchanges := exchanges_of(value):
        value = turns_of_exchanges(exchanges)
    if isinstance(value, str):
        as_text(value, name)  # states it if these are turns as Python writes them
    turns = _rows_of_columns(value) if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"The field {name} is not a dialogue",
            got=described(value),
            expected="a list of turns such as {role, content}",
        )
    if any(_calls(turn) for turn in turns):
        turns = _with_calls(turns, name)
    return tuple([_usual_turn(turn) or _turn(turn, f"{name}[{index}]") for index, turn in enumerate(turns)])


def _calls(turn: object) -> bool:
    return role_in(turn) in _CALLS


def _with_calls(turns: list, name: str) -> list:
    """Turns of the role tool_call or function_call as tool calls of one turn of the assistant."""
    result: list = []
    for index, turn in enumerate(turns):
        if not _calls(turn):
            result.append(turn)
            continue
        content = turn.get("content", turn.get("value"))
        try:
            call = json.loads(content) if isinstance(content, str) else content
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"The tool call {name}[{index}] is not JSON",
                got=shown(content),
                expected='{"name": ..., "arguments": {...}}',
            ) from error
        calls = call if isinstance(call, list) else [call]
        if index and _calls(turns[index - 1]):
            result[-1]["tool_calls"] += calls
        else:
            result.append({"role": "assistant", "content": "", "tool_calls": list(calls)})
    return result


def _rows_of_columns(value: Mapping) -> list:
    """One object as a list of one; an object of lists of one length as the list of objects that it stands for."""
    lists = value and all(isinstance(cells, list) for cells in value.values())
    if lists and len({len(cells) for cells in value.values()}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return [value]


def _usual_turn(turn: object) -> Message | None:
    """A turn of nothing but a role and ASCII text, as nearly all are; None for any other, which is looked at
    closely.
    """
    if type(turn) is not dict or len(turn) != 2:
        return None
    role, content = turn.get("role"), turn.get("content")
    if type(role) is str and role in ROLES and type(content) is str and content.isascii():
        return Message(role=ROLES[role], content=content)
    return None


def _turn(turn: object, name: str) -> Message:
    if isinstance(turn, list) and all(isinstance(item, tuple) and len(item) == 2 for item in turn):
        turn = dict(turn)  # a map of an Arrow table
    if not isinstance(turn, Mapping):
        raise DataError(
            f"The field {name} is not a turn", got=described(turn), expected="an object {role, content}"
        )
    role_key, content_key = keys_of(turn, name)
    refuse_unrendered(turn)
    if role_in(turn) is None:
        column = name.partition("[")[0]
        texts = [key for key, item in turn.items() if isinstance(item, str)] or ["text"]
        raise DataError(
            f"The field {name} is an object without a role",
            got="the fields " + ", ".join(map(str, turn)),
            expected="text, or turns {role, content}",
            do=f"Name the text in it, as in --rows.columns {column}={column}.{texts[0]}",
        )
    role = as_text(value_of(turn, role_key), f"{name}.{role_key}").lower()
    if role not in ROLES:
        raise DataError(
            f"The role of {name} is not known", got=shown(role), expected="one of " + ", ".join(ROLES)
        )
    if isinstance(turn.get(content_key), list):
        turn = with_joined_parts(turn, content_key, name)
    extras = turn_extras(turn, name)
    calls = extras is not None and bool(extras.tool_calls)
    content = (turn.get(content_key) or "") if calls else value_of(turn, content_key)
    if calls and ROLES[role] != "assistant":
        raise DataError(
            f"The turn {name} calls tools", got=f"the role {role}", expected="a turn of the assistant"
        )
    return Message(role=ROLES[role], content=as_text(content, f"{name}.{content_key}"), extras=extras)


def refuse_unrendered(row: Row) -> None:
    """An error for what would change the model's input and that is not rendered: images, audio, video."""
    for name in _NOT_RENDERED:
        if row.get(name):
            raise DataError(
                f"The field {name} is not supported",
                got=described(row[name]),
                expected="text dialogues",
                do=f"Remove {name} if the model shall not see it",
            )


def is_number(word: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def as_ended(value: object, count: int) -> tuple[bool, ...]:
    """Whether each completion ended by itself: true or false for each, or a single one where there is one
    completion.
    """
    given = value if isinstance(value, list) else [value]
    flags = tuple(flag for flag in given if isinstance(flag, bool))
    if not len(flags) == len(given) == count:
        raise DataError(
            "The field ended does not state for each completion whether it ended",
            got=described(value),
            expected=f"{count} times true or false",
            do="Rename the column if it means something else",
        )
    return flags


def as_reward(value: object, name: str) -> float:
    """A finite number, or text that reads as one (CSV knows only text); true is 1 and false 0."""
    number = float(value) if isinstance(value, (bool, Decimal)) else value
    if isinstance(value, str):
        number = {"true": 1.0, "false": 0.0}.get(value.strip().lower())
        if number is None and is_number(value):
            number = float(value)
    if not isinstance(number, (int, float)):
        raise DataError(f"The field {name} is not a number", got=described(value), expected="a number")
    try:
        number = float(number)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"The field {name} is not finite", got=described(value), expected="a finite number")
    return number


def as_reward_or_none(value: object, name: str) -> float | None:
    """A reward, or None where it is missing or written as not available."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _UNKNOWN_NUMBERS):
        return None
    return as_reward(value, name)


def as_probability(value: object, name: str) -> float:
    """A number in [0, 1]."""
    number = as_reward(value, name)
    if not 0.0 <= number <= 1.0:
        raise DataError(
            f"The field {name} is not a probability", got=described(value), expected="a number in [0, 1]"
        )
    return number


def as_source(value: object, name: str) -> Source:
    """Who wrote a completion."""
    for source in SOURCES:
        if source == value:
            return source
    raise DataError(
        f"The field {name} does not state who wrote the completion",
        got=described(value),
        expected=", ".join(SOURCES[:-1]) + f" or {SOURCES[-1]}",
    )


def as_pair(value: object, name: str, count: int) -> tuple[int, int]:
    """[chosen, rejected], the places of two of `count` completions, counted from 0."""
    match value:
        case [int() as chosen, int() as rejected] if (
            type(chosen) is type(rejected) is int and chosen != rejected
        ):
            if 0 <= chosen < count and 0 <= rejected < count:
                return chosen, rejected
    raise DataError(
        f"The field {name} is not a pair of completions",
        got=described(value),
        expected=f"[chosen, rejected], two different places from 0 to {count - 1}",
    )


def each_of(row: Row, name: str, count: int, convert: Callable[[object, str], T]) -> tuple[T, ...]:
    """A list with one value for each completion (or pair), converted; nothing where the row does not fill the
    field.
    """
    values = row.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) != count:
        raise DataError(
            f"The field {name} does not fit", got=described(values), expected=f"a list of {count} values"
        )
    return tuple(convert(value, f"{name}[{index}]") for index, value in enumerate(values))


def as_list(value: object, name: str, of: str) -> list:
    """A list with something in it; JSON text of a list is read, as tables write it."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ColumnFault(
                f"The field {name} holds text that is not a JSON list",
                got=shown(value),
                expected=f"a list of {of}, or its JSON text",
                do="Write the column with json.dumps, or save the rows as .jsonl or .parquet",
            ) from error
    if isinstance(value, Mapping):
        value = _rows_of_columns(value)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"The field {name} is not a list of {of}", got=described(value), expected=f"a list of {of}"
        )
    return value
