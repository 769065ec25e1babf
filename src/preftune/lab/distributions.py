"""Distributions over a problem's outcomes: of the reference, and of the completions in the data."""

import math
from dataclasses import dataclass

import numpy as np

from preftune.errors import ConfigError
from preftune.objectives.checks import check_between, check_finite, check_positive


@dataclass(frozen=True, kw_only=True)
class TanhCauchy:
    """tanh of a Cauchy variable, in equal bins of [-1, 1]: most mass in the lowest outcomes, some at the very
    last.
    """

    location: float = -0.7
    scale: float = 0.4

    def __post_init__(self) -> None:
        check_finite("reference", location=self.location)
        check_positive("reference", scale=self.scale)

    def probabilities(self, num: int) -> np.ndarray:
        edges = np.linspace(-1, 1, num + 1)
        with np.errstate(divide="ignore"):
            below = 0.5 + np.arctan((np.arctanh(edges) - self.location) / self.scale) / math.pi
        return np.diff(below)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    def probabilities(self, num: int) -> np.ndarray:
        return np.full(num, 1 / num)


@dataclass(frozen=True, kw_only=True)
class Tilted:
    """In proportion to exp(tilt * i / (number - 1)): a negative tilt favors the first outcomes."""

    tilt: float

    def __post_init__(self) -> None:
        check_finite("reference", tilt=self.tilt)

    def probabilities(self, num: int) -> np.ndarray:
        return _normalized(np.exp(self.tilt * (np.arange(num) / max(1, num - 1) - (self.tilt > 0))))


@dataclass(frozen=True, kw_only=True)
class Normal:
    """The normal density at each outcome's length, or at its index + 1, normalized."""

    mean: float
    deviation: float

    def __post_init__(self) -> None:
        check_finite("reference", mean=self.mean)
        check_positive("reference", deviation=self.deviation)

    def probabilities(self, num: int) -> np.ndarray:
        distance = (np.arange(1, num + 1) - self.mean) / self.deviation
        return _normalized(np.exp((np.abs(distance).min() ** 2 - distance**2) / 2))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A probability for each outcome."""

    table: tuple[float, ...]

    def probabilities(self, num: int) -> np.ndarray:
        law = np.asarray(self.table, dtype=float)
        if len(law) != num:
            raise ConfigError(
                "Each outcome needs its probability", got=f"{len(law)} probabilities of {num} outcomes"
            )
        if law.min() < 0:
            raise ConfigError("A probability is below 0", got=float(law.min()))
        if abs(law.sum() - 1) > 1e-6:
            raise ConfigError(
                "Probabilities do not sum to one",
                got=f"a sum of {law.sum():.6g}",
                do="Divide each by their sum",
            )
        return law


@dataclass(frozen=True, kw_only=True)
class FromReference:
    """Completions of the data are the reference's own."""

    def law(self, reference: np.ndarray, reward: np.ndarray) -> np.ndarray:
        return reference


@dataclass(frozen=True, kw_only=True)
class Skewed:
    """In proportion to reference * exp(tilt * reward): data that lean to the good outcomes, or with tilt < 0
    to the bad.
    """

    tilt: float

    def __post_init__(self) -> None:
        check_finite("data", tilt=self.tilt)

    def law(self, reference: np.ndarray, reward: np.ndarray) -> np.ndarray:
        return _normalized(reference * np.exp(self.tilt * (reward - reward.max())))


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """With probability `share` a completion is cut at an exponentially distributed length (rounded up) of
    this mean.
    """

    mean: float
    share: float = 1.0

    def __post_init__(self) -> None:
        check_positive("data", mean=self.mean)
        check_between("data", "[0, 1]", share=self.share)

    def law(self, reference: np.ndarray, reward: np.ndarray) -> np.ndarray:
        longer = np.append(reference[::-1].cumsum()[::-1], 0.0)  # P(outcome >= i)
        cut_after = np.exp(-np.arange(len(longer)) / self.mean)  # P(cut > i), i from 0
        return self.share * -np.diff(longer * cut_after) + (1 - self.share) * reference


LAW_KINDS = {
    "tanh_cauchy": TanhCauchy,
    "uniform": Uniform,
    "tilted": Tilted,
    "normal": Normal,
    "table": Table,
}


DATA_KINDS = {"reference": FromReference, "skewed": Skewed, "truncated": Truncated}


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
