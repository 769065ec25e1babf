"""Thompson sampling for a duel, against its chances worked out by hand."""

from collections import Counter

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.selection.explore import thompson_duels

HEADS = np.array([[9.0, 1.0, 0.0], [9.0, 0.0, 1.0], [0.0, 9.0, 1.0], [0.0, 1.0, 9.0]])  # favourites 0, 0, 1, 2


def test_chances():
    """First 0 with 1/2, then 1 or 2 alike; first 1 (1/4), then of the heads 0, 0, 2 the first: 0 with 2/3."""
    counts = Counter(thompson_duels([HEADS] * 12000, seed=4))
    chances = {(0, 1): 1 / 4, (0, 2): 1 / 4, (1, 0): 1 / 6, (1, 2): 1 / 12, (2, 0): 1 / 6, (2, 1): 1 / 12}
    assert set(counts) == set(chances)
    assert sum((counts[k] - 12000 * p) ** 2 / (12000 * p) for k, p in chances.items()) < 20.5  # 99.9%, 5 degrees


def test_heads_that_agree_give_no_duel():
    assert thompson_duels([HEADS[:2], HEADS[:1]]) == (None, None)


def test_the_seed_and_the_place_decide():
    assert thompson_duels([HEADS] * 20, 1) == thompson_duels([HEADS] * 20, 1) != thompson_duels([HEADS] * 20, 2)
    assert thompson_duels([HEADS] * 20, 1)[:5] == thompson_duels([HEADS] * 5, 1)


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan, 1.0]])])
def test_what_is_no_ensemble(scores):
    with pytest.raises(DataError, match="Group 2 has no ensemble"):
        thompson_duels([HEADS, scores])
