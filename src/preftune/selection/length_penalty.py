"""Rewards with a price on length, so that what is chosen is not simply what is longer. Pure."""

from collections.abc import Sequence

import numpy as np

from preftune.errors import DataError
from preftune.selection.choices import GroupRewards, known_rewards

_HALVINGS = 60  # exhaust a double
# rewards per unit of length; beyond it no price can bring the lengths of the two sides together
_STEEPEST = 1e12


def penalized(
    rewards: Sequence[GroupRewards], lengths: Sequence[Sequence[int]], alpha: float
) -> list[tuple[float | None, ...]]:
    """r - alpha * length for every completion; nothing where there is no reward.

    Chen et al., "Bootstrapping Language Models with DPO Implicit Rewards" (DICE), 2024, arXiv 2406.09760,
    where r is the implicit reward and lengths are characters (so the authors' code).
    """
    _check(rewards, lengths)
    return [
        tuple(None if r is None else r - alpha * n for r, n in zip(group, sizes, strict=True))
        for group, sizes in zip(rewards, lengths, strict=True)
    ]


def balanced_alpha(rewards: Sequence[GroupRewards], lengths: Sequence[Sequence[int]]) -> float:
    """The price, 0 or more, at which the best completions are on average about as long as the worst.

    The mean of length(best) - length(worst) over groups falls with the price and jumps; of the two sides of
    the jump over 0 the nearer one is taken. 0 if the best are no longer than the worst without a price.
    Groups of one reward take no part.
    """
    _check(rewards, lengths)
    groups = [
        (np.array([r for r, _ in known]), np.array([n for _, n in known], dtype=float))
        for group, sizes in zip(known_rewards(rewards), lengths, strict=True)
        if len(known := [(r, sizes[k]) for k, r in group.items()]) > 1
    ]
    if not groups:
        raise DataError(
            "No price on length can be found", got="no group with two rewards", expected="at least one"
        )

    def excess(alpha: float) -> float:
        found = [(r - alpha * n, n) for r, n in groups]
        return float(np.mean([n[np.argmax(r)] - n[np.argmin(r)] for r, n in found if np.ptp(r) > 0] or [0.0]))

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0 and high < _STEEPEST:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low if excess(low) < -excess(high) else high


def _check(rewards: Sequence[GroupRewards], lengths: Sequence[Sequence[int]]) -> None:
    if [len(group) for group in rewards] != [len(sizes) for sizes in lengths]:
        raise DataError(
            "Each completion needs its length",
            got=f"{sum(map(len, lengths))} lengths",
            expected=f"{sum(map(len, rewards))}, in the same groups",
        )
