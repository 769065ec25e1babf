"""From settings to dataclasses."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from preftune.errors import ConfigError, shown
from preftune.spec.terms import Bare, suggestion

Kinds = Mapping[str, type[Any]]
"""By the value of the key `kind`: the dataclass that the other keys must fit."""


def build(target: type[Any], settings: object, place: str, kinds: Mapping[str, Kinds] | None = None) -> Any:
    """A dataclass from a mapping of settings, from text or from YAML.

    `place` names the thing in messages, `kinds` the fields whose class a `kind` key chooses.
    """
    values = read_values(target, settings, place, kinds)
    lacking = [
        field.name
        for field in fields(target)
        if field.init
        and field.name not in values
        and field.default is MISSING
        and field.default_factory is MISSING
    ]
    if lacking:
        raise ConfigError(
            f"{_start(place)} needs a setting", got=f"no {lacking[0]}", expected=f"{lacking[0]}=..."
        )
    return target(**values)


def read_values(
    target: type[Any], settings: object, place: str, kinds: Mapping[str, Kinds] | None = None
) -> dict[str, Any]:
    """The settings as the types of a dataclass's fields; a setting that it lacks or cannot take is an error."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{place} is not a mapping", got=settings, expected="key: value lines")
    hints, known = get_type_hints(target), [field.name for field in fields(target) if field.init]
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"{_start(place)} has no such setting",
                got=str(key),
                expected=", ".join(known) or "none",
                do=suggestion(str(key), known),
            )
    values = {}
    for name, value in settings.items():
        if kinds and name in kinds:
            values[name] = _of_kind(kinds[name], value, f"{name} of {place}")
        else:
            values[name] = _value(hints[name], value, f"{name} of {place}")
    return values


def _start(place: str) -> str:
    """The place at the start of a sentence: a noun before a name in quotes is capitalized."""
    return place[:1].upper() + place[1:] if re.match(r"\w+ '", place) else place


def _of_kind(kinds: Kinds, content: object, place: str) -> Any:
    if not isinstance(content, Mapping) or "kind" not in content:
        raise ConfigError(f"{place} has no kind", got=content, expected=f"kind: {' or '.join(kinds)}")
    kind = content["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"{place} has an unknown kind",
            got=kind if isinstance(kind, str) else shown(kind),
            expected=", ".join(kinds),
            do=suggestion(str(kind), kinds),
        )
    rest = {key: value for key, value in content.items() if key != "kind"}
    return build(kinds[kind], rest, f"{place} ({kind})")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def _value(hint: Any, value: object, place: str) -> Any:
    """The value as the type wants it, or a ConfigError."""
    if get_origin(hint) in (Union, UnionType):
        return _of_union(hint, value, place)
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        if str(value) not in choices:
            raise _wrong(
                place,
                value,
                (", " if len(choices) > 2 else " or ").join(choices),
                suggestion(str(value), choices),
            )
        return choices[str(value)]
    if get_origin(hint) in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _wrong(place, value, "a list: [a, b, ...]")
        parts = [_value(get_args(hint)[0], part, f"entry {i + 1} of {place}") for i, part in enumerate(value)]
        return tuple(parts) if get_origin(hint) is tuple else parts
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, place)
    if isinstance(value, Bare):
        value = _of_bare(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise _wrong(place, value, _NAMES.get(hint, str(hint)))
    return value


def _of_union(hint: Any, value: object, place: str) -> Any:
    """The value of the first type that takes it; null first, where it is among them."""
    options = [option for option in get_args(hint) if option is not NoneType]
    is_null = value is None or (isinstance(value, Bare) and value.lower() in ("null", "none"))
    if is_null and NoneType in get_args(hint):
        return None
    for option in options[:-1]:
        try:
            return _value(option, value, place)
        except ConfigError:
            continue
    return _value(options[-1], value, place)


def _of_bare(hint: Any, text: Bare) -> object:
    """What a bare word means for a type; the text itself where it means nothing."""
    if hint is bool:
        return _WORDS.get(text.lower(), str(text))
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return str(text)
    return str(text)


def _wrong(place: str, value: object, expected: str, do: str | None = None) -> ConfigError:
    got = "nothing" if value == "" else "null" if value is None else value
    return ConfigError(f"{place} has a value that it cannot take", got=got, expected=expected, do=do)
