"""Fields inside the values of a row that are not read: of turns, of entries of a list, of objects."""

import json
from collections.abc import Container, Iterator, Mapping

from preftune.data.turn_extras import EXTRAS
from preftune.data.turn_shapes import CONTENT_KEYS, ROLE_KEYS, exchange_in, role_in

TURN_FIELDS = frozenset((*ROLE_KEYS, *CONTENT_KEYS, *EXTRAS))
NO_VALUE = (None, "", [], {}, ())
DEPTH = 3  # objects in objects that are looked into


def plain_turns(value: object) -> bool:
    """Whether a value is a list of turns that hold nothing but a role and a content, as nearly all do."""
    if type(value) is not list:
        return False
    for item in value:
        if type(item) is not dict or len(item) != 2 or "content" not in item or "role" not in item:
            return False
    return True


def unread(
    name: str, value: object, used: Container[str], depth: int = DEPTH
) -> Iterator[tuple[str, object]]:
    """(path, value) of each field that is neither part of a turn nor in `used`, and that holds something.

    A field of a list of objects has the path NAME.FIELD, whichever object it is in.
    """
    if type(value) is list:
        for item in value:
            if type(item) is dict and not (len(item) == 2 and "content" in item and "role" in item):
                yield from _of_object(name, item, used, depth)
    elif type(value) is dict:
        yield from _of_object(name, value, used, depth)


def _of_object(
    name: str, item: Mapping[str, object], used: Container[str], depth: int
) -> Iterator[tuple[str, object]]:
    read = TURN_FIELDS if role_in(item) is not None else ("content", "value", *(exchange_in(item) or ()))
    for key, cell in item.items():
        if key in read or cell in NO_VALUE or cell != cell:
            continue
        path = f"{name}.{key}"
        if path in used:
            if depth:
                yield from unread(path, cell, used, depth - 1)
        elif depth and (type(cell) is dict or (type(cell) is list and type(cell[0]) is dict)):
            yield from unread(path, cell, used, depth - 1)
        else:
            yield path, cell


def object_in(text: object) -> dict | None:
    """The object that JSON text holds, as tables write it; None for anything else."""
    if isinstance(text, str) and text[:1] == "{":
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, dict) else None
    return None


def holds(row: Mapping[str, object], path: str) -> bool:
    """Whether the row has the column, or the field inside a column."""
    if path in row:
        return True
    top, dot, rest = path.partition(".")
    while dot and top not in row:
        more, dot, rest = rest.partition(".")
        top = f"{top}.{more}"
    return bool(dot) and _inside(row.get(top), rest)


def _inside(value: object, path: str) -> bool:
    if isinstance(value, str):
        value = object_in(value)
    if isinstance(value, list):
        return any(_inside(item, path) for item in value)
    if not isinstance(value, Mapping):
        return False
    if path in value:
        return True
    cuts = [place for place, mark in enumerate(path) if mark == "."]  # a name may have dots itself
    return any(path[:cut] in value and _inside(value[path[:cut]], path[cut + 1 :]) for cut in cuts)
