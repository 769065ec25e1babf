"""Means with their intervals, for rewards before and after training. Pure functions of numbers, numpy only.

The interval is Student's t: rewards and their differences per prompt are bounded or light-tailed, test sets
have ten to a few hundred prompts, and t has the right width for few of them, where a percentile bootstrap is
too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from preftune.errors import ConfigError, DataError

# Beyond this many degrees of freedom the expansion around the normal quantile is exact to 1e-8 and costs no
# series.
MAX_SERIES_FREEDOM = 2000

Numbers = Sequence[float | int] | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and the interval that covers the true mean with the chosen probability; `num` independent
    values.

    One value does not show the spread, so its interval is the whole line.
    """

    mean: float
    low: float
    high: float
    num: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: Numbers, level: float = 0.95) -> Interval:
    """The mean of independent values with its two-sided t interval.

    Values of one prompt are not independent: average them first (`cluster_means`).
    """
    if not 0 < level < 1:
        raise ConfigError(
            "The level of an interval is a probability", got=level, expected="a number between 0 and 1"
        )
    numbers = _finite(values, "values")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean=mean, low=-math.inf, high=math.inf, num=1)
    standard_error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    half = t_quantile((1 + level) / 2, len(numbers) - 1) * standard_error
    return Interval(mean=mean, low=mean - half, high=mean + half, num=len(numbers))


def preferred_share(margins: Numbers) -> np.ndarray:
    """Of each pair, 1 if the chosen completion has the larger number, 0 if the other one has, one half for a tie."""
    return (np.sign(np.asarray(margins, dtype=np.float64)) + 1) / 2


def share_interval(shares: Numbers, level: float = 0.95) -> Interval:
    """The mean of independent shares in [0, 1] with Wilson's score interval, which never leaves [0, 1].

    It is honest where all of a few answers are right (Wilson, "Probable Inference, the Law of Succession, and
    Statistical Inference", JASA 1927). Shares between 0 and 1 vary less than the answers it is made for, so it is then
    too wide, never too narrow.
    """
    numbers = _finite(shares, "shares")
    count, mean, z = len(numbers), float(numbers.mean()), NormalDist().inv_cdf((1 + level) / 2)
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return Interval(mean=mean, low=max(0.0, middle - half), high=min(1.0, middle + half), num=count)


def length_controlled_share(shares: Numbers, length_differences: Numbers, level: float = 0.95) -> Interval:
    """The share of wins that is expected where both sides are equally long, with its interval.

    The logistic regression of AlpacaEval 2 (Dubois et al., "Length-Controlled AlpacaEval", 2024) without its term for
    the difficulty of a prompt: logit P(win) = a + b tanh(d / std(d)); the share is sigmoid(a). Firth's correction
    ("Bias reduction of maximum likelihood estimates", Biometrika 1993) keeps a and b finite where one side always wins.
    """
    wins, lengths = _finite(shares, "shares"), _finite(length_differences, "differences in length")
    spread = float(lengths.std())
    columns = [np.ones_like(lengths)] + ([np.tanh(lengths / spread)] if spread > 0 else [])
    inputs = np.stack(columns, axis=1)  # [n, 1 or 2]
    weights = np.zeros(inputs.shape[1])
    inverse = np.eye(len(weights))
    for _ in range(200):
        p = 1 / (1 + np.exp(-inputs @ weights))
        spreads = p * (1 - p)
        information = (inputs * spreads[:, None]).T @ inputs
        inverse = np.linalg.pinv(information)
        leverage = spreads * np.einsum("ni,ij,nj->n", inputs, inverse, inputs)
        step = inverse @ (inputs.T @ (wins - p + leverage * (0.5 - p)))
        weights = weights + step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-10:
            break
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(max(0.0, float(inverse[0, 0])))
    mean, low, high = (1 / (1 + math.exp(-(weights[0] + by))) for by in (0.0, -half, half))
    return Interval(mean=mean, low=low, high=high, num=len(wins))


def share_difference(first: Interval, second: Interval) -> Interval:
    """first - second of two shares with Wilson's intervals, by Newcombe's method 10 ("Interval estimation for the
    difference between independent proportions", Statistics in Medicine 1998). Shares of the same pairs vary together,
    so it is then too wide, never too narrow.
    """
    mean = first.mean - second.mean
    below = math.hypot(first.mean - first.low, second.high - second.mean)
    above = math.hypot(first.high - first.mean, second.mean - second.low)
    return Interval(mean=mean, low=mean - below, high=mean + above, num=min(first.num, second.num))


def json_numbers(content: Any) -> Any:
    """Values for JSON: dataclasses as mappings, and null for what is not finite, as the interval of a single
    value is.
    """
    if is_dataclass(content) and not isinstance(content, type):
        return json_numbers(asdict(content))
    if isinstance(content, Mapping):
        return {str(key): json_numbers(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def paired_interval(
    before: Numbers, after: Numbers, clusters: Sequence[int] | np.ndarray, level: float = 0.95
) -> Interval:
    """The mean of after - before with its interval; entry i of both belongs to prompt `clusters[i]`.

    Samples of one prompt are averaged first, since they share the prompt's difficulty; so `num` counts
    prompts, and every prompt weighs the same however often it was sampled.
    """
    before_values, after_values = _finite(before, "values before"), _finite(after, "values after")
    if len(before_values) != len(after_values):
        raise DataError(
            "A paired difference needs a value after for each value before",
            got=f"{len(before_values)} before and {len(after_values)} after",
            do="Average each prompt's samples first",
        )
    return mean_interval(cluster_means(after_values - before_values, clusters), level)


def cluster_means(values: Numbers, clusters: Sequence[int] | np.ndarray) -> np.ndarray:
    """The mean of the values of each cluster, in the order of the sorted cluster indices."""
    numbers, labels = _finite(values, "values"), np.asarray(clusters)
    if labels.shape != numbers.shape:
        raise DataError(
            "Each value needs its cluster", got=f"{len(numbers)} values and {labels.size} clusters"
        )
    _, which = np.unique(labels, return_inverse=True)
    return np.bincount(which, weights=numbers) / np.bincount(which)


def t_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, for Student's T with `freedom` degrees; probability in [0.5, 1)."""
    if not (0.5 <= probability < 1 and freedom >= 1):
        raise ConfigError(
            "The t quantile is outside its domain",
            got=f"probability {probability}, freedom {freedom}",
            expected="a probability in [0.5, 1) and a freedom of at least 1",
        )
    if freedom > MAX_SERIES_FREEDOM:  # Abramowitz and Stegun 26.7.5
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    # Bisection on the angle atan(t / sqrt(freedom)), which is bounded where t is not; 60 halvings exhaust a
    # double.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _central_mass(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)): the finite series for a whole freedom, Abramowitz and Stegun
    26.7.3-4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    # Term j over term j - 1 is cos^2 times 2/3, 4/5, ... (odd freedom) or 1/2, 3/4, ... (even freedom).
    index = np.arange(1, (freedom - 1) // 2) if odd else np.arange(1, freedom // 2)
    ratios = cosine**2 * (2 * index / (2 * index + 1) if odd else (2 * index - 1) / (2 * index))
    series = 1.0 + float(np.cumprod(ratios).sum())
    if not odd:
        return sine * series
    return 2 / math.pi * (angle + (sine * cosine * series if freedom > 1 else 0.0))


def _finite(values: Numbers, what: str) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise DataError(
            f"There are no {what} to average", got=f"shape {numbers.shape}", expected="a list of numbers"
        )
    if not np.isfinite(numbers).all():
        bad = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"The {what} must be finite", got=f"{numbers[bad]} at position {bad}")
    return numbers
