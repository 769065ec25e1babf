"""Rows of a whole .json file: a list of objects, one list per split, a table of columns, or JSON lines."""

import json
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any

from preftune.data.turn_shapes import ROLE_KEYS
from preftune.errors import ConfigError, DataError, shown

MAX_JSON_BYTES = 2 << 30  # of a .json file, which is read whole
AROUND = 30  # characters shown on either side of a fault


class RepeatedKey(ValueError):
    """An object has a key twice, and only one of the two values could be used."""


def parse(text: str) -> Any:
    """The value of JSON text; an error if an object has a key twice."""
    return _DECODER.decode(text)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKey(next(name for name in names if names.count(name) > 1))
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_fault(where: str, text: str, error: ValueError | RecursionError) -> DataError:
    """What is wrong with JSON text, with the place."""
    if isinstance(error, RepeatedKey):
        return DataError(
            f"{where}: an object has the key {error} twice",
            got=shown(text[: 2 * AROUND]),
            expected="every key once",
        )
    if not isinstance(error, json.JSONDecodeError):  # nested too deeply, or an integer of thousands of digits
        return DataError(
            f"{where}: the JSON cannot be read",
            got=shown(text[:AROUND]),
            expected="plain nesting and numbers",
        )
    near = text[max(0, error.pos - AROUND) : error.pos + AROUND]
    return DataError(
        f"{where}: broken JSON ({error.msg}, character {error.pos})",
        got=f"{shown(near)} around the fault",
        expected="one whole JSON object",
    )


def refuse_split(name: str, split: str | None) -> None:
    if split not in (None, "train"):
        raise ConfigError(
            f"The option split does not apply to the single file {name}",
            got=split,
            expected="a folder, a saved data set or a data set of the hub",
            do="Name the file of that split, and leave split out",
        )


def read_whole(file: BufferedIOBase, name: str) -> bytes:
    raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(
            f"{name} is too large to be read whole",
            got=f"more than {MAX_JSON_BYTES >> 30} GiB",
            expected="a smaller file",
            do="Write it as .jsonl, which is read row by row",
        )
    return raw


def json_values(text: str, name: str, split: str | None) -> Iterator[tuple[int, object]]:
    """(number from 1, value) of each row. A fault of one line of JSON lines comes in its place as a `DataError`."""
    start = len(text) - len(text.lstrip())
    if text.startswith("[", start):
        refuse_split(name, split)
        yield from _json_list(text, start + 1, name)
        return
    try:
        value = parse(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise json_fault(name, text, error) from error
        refuse_split(name, split)
        yield from _lines(text, name)  # several objects: JSON lines under another name
        return
    except (ValueError, RecursionError) as error:
        raise json_fault(name, text, error) from error
    yield from enumerate(_list_inside(value, name, split), start=1)


def _lines(text: str, name: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse(line)
            except (ValueError, RecursionError) as error:
                yield number, json_fault(f"{name}, row {number}", line, error)


def _json_list(text: str, position: int, name: str) -> Iterator[tuple[int, object]]:
    """The elements of a JSON list one at a time, so that an error names its row; it ends the file."""
    number = 0
    position = _after_space(text, position)
    while not (text.startswith("]", position) and number == 0):
        number += 1
        try:
            value, position = _DECODER.raw_decode(text, position)
            position = _after_space(text, position)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except (ValueError, RecursionError) as error:
            raise json_fault(f"{name}, row {number}", text, error) from error
        yield number, value
        if text[position] == "]":
            break
        position = _after_space(text, position + 1)


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


def _list_inside(value: object, name: str, split: str | None) -> list:
    if not isinstance(value, dict):
        value_lists, of_objects = {}, {}
    else:
        value_lists = {key: rows for key, rows in value.items() if isinstance(rows, list)}
        of_objects = {
            key: rows
            for key, rows in value_lists.items()
            if rows and all(isinstance(row, dict) for row in rows)
        }
        if table := _table(value):
            refuse_split(name, split)
            return table
    if split in of_objects:
        return of_objects[split]
    if len(of_objects) == 1:
        refuse_split(name, split)
        return next(iter(of_objects.values()))
    got = f"an object with the keys {shown(list(value))}" if isinstance(value, dict) else type(value).__name__
    do = f"The lists are {', '.join(of_objects)}: name one with the option split" if of_objects else None
    raise DataError(
        f"{name}: no list of rows found",
        got=got,
        expected='a list of objects, or an object with one such list, as in {"data": [...]}',
        do=do,
    )


def _table(value: dict[str, Any]) -> list[dict[str, object]]:
    """The rows of a table by columns: lists of one length, or objects with the same keys, as pandas writes them."""
    columns = list(value.values())
    if len(columns) > 1 and all(isinstance(cells, list) for cells in columns):
        cells_of = columns
    elif len(columns) > 1 and all(isinstance(cells, dict) for cells in columns):
        keys = list(columns[0])
        if not all(list(cells) == keys for cells in columns) or any(key in value for key in keys):
            return []
        cells_of = [list(cells.values()) for cells in columns]
    else:
        return []
    if len({len(cells) for cells in cells_of}) != 1 or _all_rows(cells_of):
        return []
    return [dict(zip(value, cells, strict=True)) for cells in zip(*cells_of, strict=True)]


def _all_rows(cells_of: list[list]) -> bool:
    """Whether every cell is an object with a row's columns, as in one list of rows for each split."""
    return all(
        isinstance(cell, dict) and not set(ROLE_KEYS) & cell.keys() for cells in cells_of for cell in cells
    )
