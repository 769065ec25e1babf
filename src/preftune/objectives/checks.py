"""Refusals of hyper-parameters, worded alike. NaN is never in range."""

import math
from collections.abc import Sequence

from preftune.errors import ConfigError


def check_positive(objective: str, **values: float) -> None:
    """Each value is a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise _out_of_range(objective, name, value, "a number above 0")


def check_not_negative(objective: str, **values: float) -> None:
    """Each value is a finite number, 0 or above."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise _out_of_range(objective, name, value, "0 or a number above")


def check_finite(objective: str, **values: float) -> None:
    """Each value is a finite number of any sign."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise _out_of_range(objective, name, value, "a finite number")


def check_between(objective: str, interval: str, **values: float) -> None:
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
