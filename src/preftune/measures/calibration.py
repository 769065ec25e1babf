"""How often a preference model is right, and whether it knows: accuracy, Brier score, reliability bins. Pure,
numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from preftune.errors import ConfigError, DataError
from preftune.stats import Interval, cluster_means, mean_interval, share_interval

RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Pairs whose confidence, the larger of p and 1 - p, lies in [low, high); the last bin holds 1 too."""

    low: float
    high: float
    num_pairs: int
    confidence: float | None  # mean of the bin; None in an empty one
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A preference model on held-out pairs. Intervals (95%) are over prompts; means average the pairs of a
    prompt first.
    """

    num_pairs: int
    num_prompts: int
    accuracy: Interval
    brier: Interval  # mean of (p - outcome)^2: 0.25 of a model that always predicts 1/2
    nll: Interval  # -log of the outcome's probability, in nats: 0.693 of that model
    ece: Interval  # expected calibration error, over pairs; the interval is a bootstrap over prompts
    bins: tuple[ReliabilityBin, ...]


def calibrate(
    margins: Sequence[float] | np.ndarray,
    clusters: Sequence[int] | np.ndarray,
    probabilities: Sequence[float] | np.ndarray | None = None,
    *,
    num_bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """Reward margins of pairs against what was preferred, with p = sigma(margin) the model's chance of the
    chosen one.

        ECE = sum over bins of (n_b / n) |accuracy_b - confidence_b|

    with equal bins of the confidence from 1/2 to 1 (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017, arXiv
    1706.04599). An outcome is 1, or the pair's own probability where the data give one. A margin of 0 counts
    one half.

    Args:
        margins: r(chosen) - r(rejected) per pair.
        clusters: the prompt of each pair.
        probabilities: the chance that the chosen one is the better one, per pair; 1 where None.
        num_bins: at least 1.
        seed: of the bootstrap.
    """
    if num_bins < 1:
        raise ConfigError("num_bins is out of range", got=num_bins, expected="at least 1")
    margin = np.asarray(margins, dtype=np.float64)
    if not np.isfinite(margin).all() or not len(margin):
        raise DataError(
            "The margins of the pairs must be finite numbers",
            got=f"{len(margin)} pairs",
            expected="at least one pair, and scores that are finite",
        )
    outcome = np.ones_like(margin) if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    chance = np.exp(-np.logaddexp(0, -margin))
    confidence = np.maximum(chance, 1 - chance)
    right = np.where(margin == 0, 0.5, np.where(margin > 0, outcome, 1 - outcome))
    nll = outcome * np.logaddexp(0, -margin) + (1 - outcome) * np.logaddexp(0, margin)
    _, prompt = np.unique(np.asarray(clusters), return_inverse=True)
    sums = _bin_sums(prompt, confidence, right, num_bins)
    return Calibration(
        num_pairs=len(margin),
        num_prompts=int(prompt.max()) + 1,
        accuracy=share_interval(cluster_means(right, prompt)),
        nll=mean_interval(cluster_means(nll, prompt)),
        brier=_within_one(mean_interval(cluster_means((chance - outcome) ** 2, prompt))),
        ece=_ece_interval(sums, seed),
        bins=_bins(sums.sum(1)),
    )


def _within_one(interval: Interval) -> Interval:
    """The part of the interval where the quantity can be."""
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


def _bin_sums(prompt: np.ndarray, confidence: np.ndarray, right: np.ndarray, num_bins: int) -> np.ndarray:
    """[3, prompts, bins]: the number of pairs, the sums of confidence and of right answers."""
    bins = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    sums = np.zeros((3, int(prompt.max()) + 1, num_bins))
    for row, values in enumerate((np.ones_like(right), confidence, right)):
        np.add.at(sums[row], (prompt, bins), values)
    return sums


def _ece(sums: np.ndarray) -> np.ndarray:
    """Over the last axis, the bins; |sum of confidence - sum of right answers| is n_b |confidence_b -
    accuracy_b|.
    """
    return np.asarray(np.abs(sums[1] - sums[2]).sum(-1) / np.maximum(sums[0].sum(-1), 1))


def _ece_interval(sums: np.ndarray, seed: int) -> Interval:
    count = sums.shape[1]
    point = float(_ece(sums.sum(1)))
    if count == 1:
        return Interval(mean=point, low=-np.inf, high=np.inf, num=1)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.quantile(_ece(np.stack([drawn @ part for part in sums])), [0.025, 0.975])
    return Interval(mean=point, low=float(low), high=float(high), num=count)


def _bins(sums: np.ndarray) -> tuple[ReliabilityBin, ...]:
    edges = np.linspace(0.5, 1.0, sums.shape[1] + 1)
    return tuple(
        ReliabilityBin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            num_pairs=int(count),
            confidence=float(confidence / count) if count else None,
            accuracy=float(right / count) if count else None,
        )
        for b, (count, confidence, right) in enumerate(sums.T)
    )
