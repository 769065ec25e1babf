"""Where the data and the peak of the reward lie, seen from the policy's own samples: the coverage conditions
of Tajwar et al.

Conditions C1 (the reward's peak under the reference) and C2 (the preference data under the reference) of
"Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data" (ICML 2024, arXiv 2404.14367),
measured. Pure, numpy only. Throughout, one entry of the outer sequence belongs to one prompt, and every
prompt weighs the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.errors import DataError
from preftune.stats import Interval, Numbers, mean_interval

PerPrompt = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearness:
    """How near some completions are to the policy's own samples; `rank` is 0.5 where they are alike."""

    off_policy: Interval  # nats per token
    rank: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPeak:
    """The rewards of the policy's samples and of the data."""

    best_of_n: Mapping[int, Interval]
    best_of_data: Interval
    spread: Interval  # standard deviation of a prompt's own rewards
    zero_spread: Interval  # share of prompts whose own rewards are all equal


def nearness(own: PerPrompt, data: PerPrompt) -> Nearness | None:
    """How far from on-policy completions are, by their log-probability per token; None if no prompt has any.

        off_policy = mean over prompts of ( mean_k logp(y_k)/|y_k|  -  mean_j logp(z_j)/|z_j| )
        rank       = mean over prompts and j of ( #{k: own_k < data_j} + #{k: own_k = data_j}/2 ) / K

    with y_k the K own samples and z_j the data's completions of a prompt; both are log-probabilities per
    token, in nats.
    """
    known = [(np.asarray(mine, float), np.asarray(theirs, float)) for mine, theirs in _both(own, data)]
    if not known:
        return None
    gaps = [float(mine.mean() - theirs.mean()) for mine, theirs in known]
    ranks = [float(np.mean([_below(mine, value) for value in theirs])) for mine, theirs in known]
    return Nearness(off_policy=mean_interval(gaps), rank=_bounded(mean_interval(ranks)))


def reward_peak(own: PerPrompt, data: PerPrompt) -> RewardPeak | None:
    """Whether the reward is highest where the policy writes, or where the data are.

        best_of_data = mean over prompts of ( #{k: own_k < best} + #{k: own_k = best}/2 ) / K,   best = max_j
        data_j

    and `best_of_n` of the own samples, with their standard deviation per prompt (divisor K - 1). A prompt
    takes part if it has two own rewards and one of the data's; None if there is no such prompt. Rewards are
    in their own unit.
    """
    known = [(np.asarray(mine, float), max(theirs)) for mine, theirs in _both(own, data) if len(mine) > 1]
    if not known:
        return None
    spreads = [float(mine.std(ddof=1)) for mine, _ in known]
    flat = [float(mine.max() == mine.min()) for mine, _ in known]
    return RewardPeak(
        best_of_n=best_of_n([mine for mine, _ in known]),
        best_of_data=_bounded(mean_interval([_below(mine, best) for mine, best in known])),
        spread=_bounded(mean_interval(spreads), math.inf),
        zero_spread=_bounded(mean_interval(flat)),
    )


def best_of_n(own: Sequence[np.ndarray]) -> dict[int, Interval]:
    """Expected best reward of n own samples, for n = 1, 2, 4, ... and the fewest samples that a prompt has."""
    most = min(len(mine) for mine in own)
    counts = sorted({*(2**k for k in range(most.bit_length())), most})
    return {n: mean_interval([expected_best(mine, n) for mine in own]) for n in counts}


def expected_best(rewards: Numbers, n: int) -> float:
    """The expected best of n draws, without bias, from the K >= n rewards at hand.

        E = sum_{i=n}^{K} C(i-1, n-1) / C(K, n) * r_(i)          r_(1) <= ... <= r_(K)

    the mean of the maximum over all subsets of size n.
    """
    count = len(rewards)
    if not 1 <= n <= count:
        raise DataError("The best of n wants n rewards", got=f"n = {n} and {count} rewards")
    ordered, total = sorted(float(reward) for reward in rewards), math.comb(count, n)
    return math.fsum(math.comb(i, n - 1) / total * reward for i, reward in enumerate(ordered))


def _both(own: PerPrompt, data: PerPrompt) -> list[tuple[Sequence[float], Sequence[float]]]:
    """The prompts that have numbers on both sides."""
    return [(mine, theirs) for mine, theirs in zip(own, data, strict=True) if len(mine) and len(theirs)]


def _below(own: np.ndarray, value: float) -> float:
    """Share of the policy's values below a value; equal values count half."""
    return float(((own < value) + 0.5 * (own == value)).mean())


def _bounded(interval: Interval, high: float = 1.0) -> Interval:
    """The part of the interval where the quantity can be, from 0 on."""
    return Interval(
        mean=interval.mean, low=max(0.0, interval.low), high=min(high, interval.high), num=interval.num
    )
