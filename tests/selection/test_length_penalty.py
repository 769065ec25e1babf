"""The price on length: hand-worked choices and the balance it is meant to find."""

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.selection.length_penalty import balanced_alpha, penalized


def test_the_price_is_paid_by_length():
    assert penalized([[1.0, None, 2.0]], [[10, 5, 40]], 0.05) == [(0.5, None, 0.0)]


def test_the_balance_by_hand():
    """Group 1: the long one (30 longer) leads by 3 and changes sides at 0.1; group 2: the long one (10
    longer) leads by 4, at 0.4.

    Excess: (30 + 10) / 2 = 20 below 0.1, (-30 + 10) / 2 = -10 from there to 0.4: the jump is at 0.1, and -10
    is nearer to 0.
    """
    alpha = balanced_alpha([[3.0, 0.0], [4.0, 0.0]], [[40, 10], [20, 10]])
    assert alpha == pytest.approx(0.1, rel=1e-9) and alpha >= 0.1
    found = penalized([[3.0, 0.0], [4.0, 0.0]], [[40, 10], [20, 10]], alpha + 1e-9)
    assert found[0][1] > found[0][0] and found[1][0] > found[1][1]


def test_the_nearer_side_of_a_jump():
    """The first group changes sides at 0.01 (100 characters for a lead of 1); the second never does below
    0.8.
    """
    after = balanced_alpha(
        [[1.0, 0.0], [4.0, 0.0]], [[110, 10], [15, 10]]
    )  # (100 + 5) / 2 before, (-100 + 5) / 2 after
    assert after == pytest.approx(0.01) and after >= 0.01
    before = balanced_alpha(
        [[1.0, 0.0], [9.0, 0.0]], [[110, 10], [10, 105]]
    )  # (100 - 95) / 2 before, (-100 - 95) / 2 after
    assert before == pytest.approx(0.01) and before < 0.01


def test_no_price_where_nothing_is_longer():
    assert balanced_alpha([[1.0, 0.0]], [[10, 40]]) == 0.0
    assert balanced_alpha([[1.0, 1.0], [None, 2.0], [2.0, 1.0]], [[10, 40], [1, 9], [5, 5]]) == 0.0


def test_a_reward_of_length_alone_is_undone():
    """r = 0.02 * length + noise: at the balance the two sides are about as long."""
    random = np.random.default_rng(0)
    lengths = random.integers(50, 500, (200, 8))
    rewards = 0.02 * lengths + random.normal(size=lengths.shape)
    alpha = balanced_alpha(rewards.tolist(), lengths.tolist())
    assert alpha == pytest.approx(0.02, rel=0.05)
    left = np.array(penalized(rewards.tolist(), lengths.tolist(), alpha))
    rows = np.arange(200)
    assert abs((lengths[rows, left.argmax(1)] - lengths[rows, left.argmin(1)]).mean()) < 5
    assert (lengths[rows, rewards.argmax(1)] - lengths[rows, rewards.argmin(1)]).mean() > 300


def test_mistakes():
    with pytest.raises(DataError, match="Each completion needs its length"):
        penalized([[1.0, 2.0]], [[1]], 0.1)
    with pytest.raises(DataError, match="no group with two rewards"):
        balanced_alpha([[1.0, None]], [[1, 2]])
