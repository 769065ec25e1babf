"""How near data are to own samples, and where the reward's peak lies: numbers worked out by hand."""

from itertools import combinations

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.measures.coverage import best_of_n, expected_best, nearness, reward_peak


def test_off_policy_is_the_mean_gap_per_prompt():
    """Prompt 1: own mean -1, data mean -3: 2. Prompt 2: own -2, data -1: -1. Prompts without data take no
    part.
    """
    told = nearness([[-0.5, -1.5], [-2.0, -2.0], [-9.0]], [[-3.0], [-1.5, -0.5], []])
    assert told is not None
    assert told.off_policy.mean == pytest.approx(0.5) and told.off_policy.num == 2
    # t interval of (2, -1): the standard error is 1.5, and t with one degree of freedom 12.706
    assert told.off_policy.high - told.off_policy.mean == pytest.approx(1.5 * 12.7062, rel=1e-4)
    assert told.rank.mean == pytest.approx((0.0 + 1.0) / 2)
    assert nearness([[-1.0]], [[]]) is None


def test_rank_counts_equals_half():
    told = nearness([[1.0, 2.0, 2.0, 3.0]] * 2, [[2.0], [2.0, 9.0]])
    assert told is not None and told.rank.mean == pytest.approx((0.5 + (0.5 + 1.0) / 2) / 2)
    same = np.random.default_rng(0).normal(size=(400, 8))
    told = nearness(same[:, :4].tolist(), same[:, 4:].tolist())
    assert (
        told is not None
        and told.rank.mean == pytest.approx(0.5, abs=0.03)
        and told.off_policy.mean == pytest.approx(0, abs=0.1)
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_subsets(n):
    rewards = [0.3, -1.0, 2.5, 0.3, 1.0]
    assert expected_best(rewards, n) == pytest.approx(
        np.mean([max(one) for one in combinations(rewards, n)]), abs=1e-12
    )


def test_expected_best_by_hand_and_without_bias():
    assert expected_best([4, 1, 3, 2], 2) == pytest.approx(20 / 6)
    with pytest.raises(DataError, match="n = 3 and 2 rewards"):
        expected_best([1, 2], 3)
    random = np.random.default_rng(1)
    told = np.mean([expected_best(random.random(6), 4) for _ in range(4000)])
    assert told == pytest.approx(4 / 5, abs=0.01)  # the best of 4 uniforms is 4/5 on average


def test_best_of_n_has_powers_of_two_and_all():
    told = best_of_n([np.arange(6.0), np.arange(7.0)])
    assert list(told) == [1, 2, 4, 6]
    assert told[1].mean == pytest.approx((2.5 + 3.0) / 2) and told[6].mean == pytest.approx(
        (5 + (6 * 6 + 5) / 7) / 2
    )


def test_reward_peak():
    """Data's best 1 beats one own sample of two and ties with the other: 3/4. The second prompt is flat, and
    loses: 0.
    """
    told = reward_peak([[0.0, 1.0], [5.0, 5.0], [1.0], [1.0, 2.0]], [[1.0, -1.0], [4.0], [1.0], []])
    assert told is not None
    assert (
        told.best_of_data.mean == pytest.approx(0.375)
        and told.best_of_data.low == 0
        and told.best_of_data.high == 1
    )
    assert told.zero_spread.mean == 0.5 and told.spread.low == 0
    assert told.spread.mean == pytest.approx(np.sqrt(0.5) / 2)  # divisor K - 1
    assert told.best_of_n[1].mean == pytest.approx(2.75) and told.best_of_n[2].mean == pytest.approx(3.0)
    assert reward_peak([[1.0]], [[1.0]]) is None
