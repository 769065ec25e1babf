"""Which two completions of a prompt to compare, by an ensemble of rewards that does not agree. Pure."""

from collections.abc import Sequence

import numpy as np

from preftune.errors import DataError


def thompson_duels(ensemble: Sequence[np.ndarray], seed: int = 0) -> tuple[tuple[int, int] | None, ...]:
    """Two completions per group for someone to compare: the favourites of two heads drawn at random.

    The first is the favourite of a random head, the second that of the first other head, in random order, which has another
    favourite: Thompson sampling for a duel, twice. None where all heads agree, so that nothing is to be learned. Liu et al.,
    "Sample-Efficient Alignment for LLMs" (SEA), 2024, arXiv 2411.01493. Whoever compares them says which is better.

    Args:
        ensemble: for each group [heads, completions], every entry a finite number.
        seed: of the draws; a group's depend on it and on the group's place only.
    """
    duels: list[tuple[int, int] | None] = []
    for g, scores in enumerate(ensemble):
        if scores.ndim != 2 or 0 in scores.shape or not np.isfinite(scores).all():
            raise DataError(f"Group {g + 1} has no ensemble of rewards", got=f"shape {scores.shape}",
                            expected="finite numbers, [heads, completions]")  # fmt: skip
        favourites = [int(head) for head in np.random.default_rng([seed, g]).permutation(scores).argmax(1)]
        second = next((k for k in favourites if k != favourites[0]), None)
        duels.append(None if second is None else (favourites[0], second))
    return tuple(duels)
