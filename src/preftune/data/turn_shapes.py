"""The shapes that turns have in files: {role, content}, {from, value}, {speaker, text}; exchanges {input, output}."""

import json
from collections.abc import Mapping, Sequence

from preftune.errors import DataError, shown

ROLE_KEYS = ("from", "role", "speaker")
CONTENT_KEYS = ("content", "value", "text")
_USUAL = {"role", "content"}
EXCHANGES = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("user", "bot"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)  # a turn of the user and the answer to it, in one object


def role_in(turn: object) -> object:
    """What a turn states as its role; None if it states none."""
    if not isinstance(turn, Mapping):
        return None
    for key in ROLE_KEYS:  # a loop: this runs for every turn of a file
        if key in turn:
            return turn[key]
    return None


def keys_of(turn: Mapping[str, object], name: str) -> tuple[str, str]:
    """(the key of the role, the key of the content); an error if two keys hold different contents."""
    if turn.keys() == _USUAL:  # the case of nearly every turn
        return "role", "content"
    role = next((key for key in ROLE_KEYS if key in turn), "role")
    keys = ("value", "content", "text") if role == "from" else CONTENT_KEYS
    filled = [key for key in keys if turn.get(key) not in (None, "", [])]
    if len(filled) > 1 and any(turn[key] != turn[filled[0]] for key in filled):
        raise DataError(
            f"The turn {name} has two different contents",
            got=", ".join(f"{key} {shown(turn[key], 30)}" for key in filled),
            expected=f"one of {', '.join(keys)}",
        )
    return role, filled[0] if filled else next((key for key in keys if key in turn), keys[0])


def exchange_in(item: object) -> tuple[str, str] | None:
    """The keys of a question and its answer in one object; None for anything else."""
    if not isinstance(item, Mapping) or role_in(item) is not None:
        return None
    return next((pair for pair in EXCHANGES if pair[0] in item and pair[1] in item), None)


def exchanges_of(value: object) -> list[Mapping[str, object]] | None:
    """A list of exchanges, also as JSON text; None for anything else."""
    if isinstance(value, str) and value[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not (isinstance(value, list) and value) or (type(value[0]) is dict and "role" in value[0]):
        return None
    if all(exchange_in(item) for item in value):
        return value
    return None


def turns_of_exchanges(exchanges: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The turns of exchanges: of the system where one has such a text, of the user, of the assistant.

    An exchange without an answer may be last: it is what the assistant is to answer.
    """
    turns: list[dict[str, object]] = []
    for index, exchange in enumerate(exchanges):
        pair = exchange_in(exchange)
        assert pair is not None
        keys = [("system", "system")] if exchange.get("system") else []
        for role, key in (*keys, ("user", pair[0]), ("assistant", pair[1])):
            last = index == len(exchanges) - 1 and role == "assistant"
            if not (last and exchange[key] in (None, "")):
                turns.append({"role": role, "content": exchange[key]})
    return turns
