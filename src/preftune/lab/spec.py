"""Frozen dataclasses from YAML: unknown keys, wrong kinds of values and missing ones are refused with a
sentence.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from preftune.errors import ConfigError

Kinds = Mapping[str, type[Any]]
"""By the value of the key `kind`: the dataclass that the other keys must fit."""


def built(target: type[Any], content: object, where: str, kinds: Mapping[str, Kinds] | None = None) -> Any:
    """A dataclass from a mapping; `where` names the place in messages, `kinds` the fields whose class a
    `kind` key chooses.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} is not a mapping", got=content, expected="key: value lines")
    hints, known = get_type_hints(target), {field.name: field for field in fields(target)}
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(
                f"{where} has no key of this name",
                got=str(key),
                expected=", ".join(known),
                do=f"Did you mean {near[0]}?" if near else None,
            )
    values = {}
    for name, field in known.items():
        if name not in content:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ConfigError(f"{where} has no {name}", expected=f"{name}: ...")
            continue
        place = f"{where}, {name}"
        if kinds and name in kinds:
            values[name] = _of_kind(kinds[name], content[name], place)
        else:
            values[name] = _value(hints[name], content[name], place)
    return target(**values)


def _of_kind(kinds: Kinds, content: object, where: str) -> Any:
    if not isinstance(content, Mapping) or "kind" not in content:
        raise ConfigError(f"{where} has no kind", got=content, expected=f"kind: {' or '.join(kinds)}")
    kind = content["kind"]
    if kind not in kinds:
        raise ConfigError(f"{where} has an unknown kind", got=kind, expected=", ".join(kinds))
    return built(
        kinds[kind], {key: value for key, value in content.items() if key != "kind"}, f"{where} ({kind})"
    )


def _value(hint: Any, value: object, where: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(
                f"{where} has a value that it cannot take",
                got=value,
                expected=", ".join(map(str, get_args(hint))),
            )
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is not a list", got=value, expected="[a, b, ...]")
        return tuple(
            _value(get_args(hint)[0], part, f"{where}, entry {i + 1}") for i, part in enumerate(value)
        )
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else built(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{where} has a value that it cannot take", got=value, expected=names[hint])
    return value
