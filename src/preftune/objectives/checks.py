"""Refusals of hyperparameters, worded alike. NaN is never in range."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from preftune.errors import ConfigError

_RANGE = "range"  # of a field's metadata


def positive(default: Any = MISSING) -> Any:
    """A field: a finite number above 0. As with the others here, None is in range if it is the default."""
    return field(default=default, metadata={_RANGE: check_positive})


def not_negative(default: Any = MISSING) -> Any:
    """A field: a finite number, 0 or above."""
    return field(default=default, metadata={_RANGE: check_not_negative})


def finite(default: Any = MISSING) -> Any:
    """A field: a finite number of any sign."""
    return field(default=default, metadata={_RANGE: check_finite})


def between(default: Any, interval: str) -> Any:
    """A field: a number in an interval written as in mathematics."""

    def check(objective: str, **values: float | int) -> None:
        check_between(objective, interval, **values)

    return field(default=default, metadata={_RANGE: check})


def check_fields(objective: Any, name: str) -> None:
    """Each field of a dataclass is in its range, or among the choices of its type."""
    for known, choices in _checked(type(objective)):
        value = getattr(objective, known.name)
        if value is None and known.default is None:
            continue
        if isinstance(known.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{name}: {known.name} is unknown", got=value, expected="true or false")
        if choices:
            check_choice(name, choices, **{known.name: value})  # type: ignore
        if _RANGE in known.metadata:
            known.metadata[_RANGE](name, **{known.name: value})


@cache
def _checked(kind: type[Any]) -> tuple[tuple[Field[Any], tuple[str, ...]], ...]:
    """Each field with the choices of a Literal type, or none."""
    hints = get_type_hints(kind)
    return tuple((known, choices_of(hints[known.name])) for known in fields(kind))


def choices_of(hint: Any) -> tuple[str, ...]:
    """The choices of a Literal type, or none."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(choice for part in get_args(hint) for choice in choices_of(part))
    return get_args(hint) if get_origin(hint) is Literal else ()


def check_positive(objective: str, **values: float | int) -> None:
    """Each value is a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise _out_of_range(objective, name, value, "a number above 0")


def check_not_negative(objective: str, **values: float | int) -> None:
    """Each value is a finite number, 0 or above."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise _out_of_range(objective, name, value, "0 or a number above")


def check_finite(objective: str, **values: float | int) -> None:
    """Each value is a finite number of any sign."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise _out_of_range(objective, name, value, "a finite number")


def check_between(objective: str, interval: str, **values: float | int) -> None:
    """Each value lies in an interval written as in mathematics: "[0, 0.5)" holds 0 and not 0.5."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        above = value >= low if interval.startswith("[") else value > low
        below = value <= high if interval.endswith("]") else value < high
        if not (above and below):
            raise _out_of_range(objective, name, value, interval)


def check_choice(objective: str, choices: Sequence[str], **values: str) -> None:
    """Each value is one of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ConfigError(f"{objective}: {name} is unknown", got=value, expected=" or ".join(choices))


def _out_of_range(objective: str, name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{objective}: {name} is out of range", got=value, expected=expected)
