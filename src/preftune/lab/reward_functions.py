"""Rewards of a problem's outcomes, by their number."""

from dataclasses import dataclass

import numpy as np

from preftune.errors import ConfigError
from preftune.objectives.checks import check_finite, check_positive


@dataclass(frozen=True, kw_only=True)
class Bump:
    """exp(-((i - centre) / width)^2), i being the outcome from 0."""

    centre: float
    width: float

    def __post_init__(self) -> None:
        check_finite("reward", centre=self.centre)
        check_positive("reward", width=self.width)

    def values(self, num: int) -> np.ndarray:
        return np.exp(-(((np.arange(num) - self.centre) / self.width) ** 2))


@dataclass(frozen=True, kw_only=True)
class RewardTable:
    """A number for each outcome."""

    table: tuple[float, ...]

    def values(self, num: int) -> np.ndarray:
        if len(self.table) != num:
            raise ConfigError(
                "Each outcome needs its reward",
                got=f"{len(self.table)} rewards of {num} outcomes",
                do="Change size, or the table of rewards",
            )
        return np.asarray(self.table, dtype=float)


@dataclass(frozen=True, kw_only=True)
class Short:
    """Minus the length, as a share of the longest."""

    def values(self, num: int) -> np.ndarray:
        return -_lengths(num) / (num - 1)


@dataclass(frozen=True, kw_only=True)
class Near:
    """Minus the distance of the length to `length`, as a share of the longest."""

    length: float

    def values(self, num: int) -> np.ndarray:
        return -np.abs(_lengths(num) - self.length) / (num - 1)


REWARD_KINDS = {"bump": Bump, "table": RewardTable, "short": Short, "near": Near}


def _lengths(num: int) -> np.ndarray:
    """Tokens of each outcome: stopping at the i-th position takes i tokens, never stopping all of them."""
    return np.minimum(np.arange(1, num + 1), num - 1).astype(float)
