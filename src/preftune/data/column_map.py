"""The user's names for columns: label=thumbs_up, prompt=input.messages, prompt=context+question,
label=thumbs{up:1,down:-1}.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.errors import ConfigError, DataError, shown

_ITEM = re.compile(r"\s*([\w.]+)\s*=\s*([^{},]+?)\s*(?:\{([^{}]*)\})?\s*")
_FORMS = (
    "--rows.columns with FIELD=COLUMN, FIELD=COLUMN.INNER, FIELD=COLUMN+COLUMN or FIELD=COLUMN{VALUE:NEW,...}"
)
_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)")
NEUTRAL = "neutral"
REPLACED = " (replaced)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRule:
    """Where one field comes from, and what its values mean."""

    field: str
    columns: tuple[str, ...]  # names or paths; the texts of several are joined by a blank line
    values: Mapping[str, object] | None = None


def parse_columns(given: object, fields: tuple[str, ...]) -> dict[str, Any]:
    """The option in its usual form: field -> column, or {"column": ..., "values": {...}}."""
    if isinstance(given, str):
        given = _of_text(given)
    if not isinstance(given, Mapping):
        raise _fault("is not understood", given)
    columns: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise ConfigError(
                "The data option columns names a field that does not exist",
                got=str(name),
                expected="one of " + ", ".join(fields),
                do="Write our field first and your column second, as in --rows.columns chosen=winner",
            )
        columns[str(name)] = _usual(str(name), value)
    return columns


def columns_text(columns: Mapping[str, Any]) -> str:
    """The option in its usual form as the text of the flag."""
    parts = []
    for name, value in columns.items():
        if isinstance(value, str):
            parts.append(f"{name}={value}")
            continue
        values = ",".join(f"{key}:{_word(new)}" for key, new in value["values"].items())
        parts.append(f"{name}={value['column']}{{{values}}}")
    return ",".join(parts)


def _word(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _of_text(text: str) -> object:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise _fault("is no valid JSON", text) from error
    columns: dict[str, object] = {}
    for item in re.split(r",(?![^{]*\})", text) if text.strip() else ():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise _fault("is not understood", item)
        field, column, values = match.groups()
        if field in columns:
            raise _fault(f"names the field {field} twice", text)
        columns[field] = column if values is None else {"column": column, "values": _values_of(values, item)}
    return columns


def _values_of(text: str, item: str) -> dict[str, object]:
    values: dict[str, object] = {}
    for pair in text.split(","):
        value, colon, new = pair.rpartition(":")
        if not colon or not value.strip() or not new.strip():
            raise _fault("has a value without a meaning", item)
        values[value.strip().strip("\"'")] = _scalar(new.strip().strip("\"'"))
    return values


def _scalar(text: str) -> object:
    if text.lower() in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _fault(what: str, got: object) -> ConfigError:
    return ConfigError(f"The data option columns {what}", got=shown(got), expected=_FORMS)


def _usual(field: str, value: object) -> object:
    """One entry of the option: a text, {"column", "values"}, {column: {value: new}}, or {value: new} of the field."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping) and value:
        if set(value) == {"column", "values"} and isinstance(value["values"], Mapping):
            column, values = value["column"], value["values"]
        elif len(value) == 1 and isinstance(next(iter(value.values())), Mapping):
            column, values = next(iter(value.items()))
        else:
            column, values = field, value
        if (
            isinstance(column, str)
            and values
            and not any(isinstance(v, (Mapping, list)) for v in values.values())
        ):
            return {"column": column, "values": {_key(k): v for k, v in values.items()}}
    raise _fault(f"has no column for the field {field}", value)


def _key(value: object) -> str:
    """A value as a key of a mapping: true, 1 and "1.0" in one spelling each."""
    text = str(value).strip()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text if _COMPARISON.fullmatch(text) else text.lower()


def rules_of(columns: Mapping[str, Any]) -> tuple[ColumnRule, ...]:
    """The rules of the option in its usual form."""
    rules = []
    for field, value in columns.items():
        column, values = (value, None) if isinstance(value, str) else (value["column"], value["values"])
        columns_ = tuple(part.strip() for part in column.split("+"))
        rules.append(ColumnRule(field=field, columns=columns_, values=values and _neutral(values)))
    return tuple(rules)


def _neutral(values: Mapping[str, object]) -> dict[str, object]:
    """0 next to -1 means neutral, as 0 next to 1 alone means dispreferred."""
    neutral = -1 in values.values()
    return {
        _key(key): NEUTRAL if neutral and new == 0 and not isinstance(new, bool) else new
        for key, new in values.items()
    }


def mapped(row: Mapping[str, object], rules: tuple[ColumnRule, ...]) -> dict[str, object]:
    """The row with the user's columns under our names. A column that had our name already is kept under another."""
    taken: set[str] = set()
    fields: dict[str, object] = {}
    left: dict[str, object] = {}
    for rule in rules:
        cells = []
        for path in rule.columns:
            top, cell, rest = _reached(row, path)
            taken.add(top)
            left |= rest
            cells.append(cell)
        fields[rule.field] = _meaning(_joined(cells, rule), rule)
    value: dict[str, object] = {}
    for name, cell in row.items():
        if name not in taken:
            value[name + REPLACED if name in fields else name] = cell
    named = {path for rule in rules for path in rule.columns}
    value |= {name: cell for name, cell in left.items() if name not in named}
    for name in left:  # tools next to the messages that were named belong to the template
        short = name.rpartition(".")[2]
        if short in ("tools", "chat_template_kwargs") and short not in row and name in value:
            value[short] = value.pop(name)
    return value | fields


def _reached(row: Mapping[str, object], path: str) -> tuple[str, object, dict[str, object]]:
    """(the column, the value at the path, the other fields of the objects on the way)"""
    if path in row:
        return path, row[path], {}
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        top = ".".join(parts[:cut])
        if top in row:
            break
    else:
        raise DataError(
            f"the column {path} named in columns is not there",
            got="the columns " + ", ".join(map(str, row)),
            expected=f"a column {path}",
        )
    value, left, way = row[top], {}, top
    for part in parts[cut:]:
        if isinstance(value, str) and value[:1] in "[{":
            value = _parsed(value)
        if isinstance(value, Mapping) and part in value:
            left |= {f"{way}.{key}": item for key, item in value.items() if key != part}
            value = value[part]
        elif isinstance(value, list) and part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value, others = _column_of(value, part, way)
            left |= others
        else:
            inside = (
                f"the fields {', '.join(map(str, value))}" if isinstance(value, Mapping) else shown(value)
            )
            raise DataError(
                f"The field {path} named in columns is not there",
                got=inside,
                expected=f"a field {part} in {way}",
            )
        way = f"{way}.{part}"
    return top, value, left


def _column_of(entries: list, field: str, way: str) -> tuple[list[object], dict[str, object]]:
    """(a field of every entry of a list, the other fields likewise); null where an entry lacks it."""
    names = dict.fromkeys(key for entry in entries for key in entry)
    if field not in names:
        raise DataError(
            f"The field {way}.{field} named in columns is not there",
            got=f"entries with the fields {', '.join(map(str, names))}",
            expected=f"a field {field} in the entries of {way}",
        )
    columns = {name: [entry.get(name) for entry in entries] for name in names}
    return columns.pop(field), {f"{way}.{name}": cells for name, cells in columns.items()}


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _joined(cells: list[object], rule: ColumnRule) -> object:
    if len(cells) == 1:
        return cells[0]
    texts = [cell for cell in cells if cell not in (None, "")]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"The columns {', '.join(rule.columns)} cannot be joined to {rule.field}",
            got=shown(texts),
            expected="texts",
        )
    return "\n\n".join(map(str, texts))


def _meaning(cell: object, rule: ColumnRule) -> object:
    if rule.values is None:
        return cell
    if isinstance(cell, list):  # a value for each completion
        return [_meaning(item, rule) for item in cell]
    key = _key(cell)
    if key in rule.values:
        return rule.values[key]
    if cell is None:
        return None
    try:
        number = float(key)
    except ValueError:
        number = None
    if number is not None:
        for bound, new in rule.values.items():
            match = _COMPARISON.fullmatch(bound)
            if match and _holds(number, match[1], float(match[2])):
                return new
    raise DataError(
        f"The value in {', '.join(rule.columns)} has no meaning in the data option columns",
        got=shown(cell),
        expected="one of " + ", ".join(rule.values),
        do="Add the value, with 0 or null for neither good nor bad",
    )


def _holds(number: float, relation: str, bound: float) -> bool:
    return {"<": number < bound, ">": number > bound, "<=": number <= bound, ">=": number >= bound}[relation]
