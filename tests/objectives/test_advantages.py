"""Advantages: groups of 3, 2 and 1 whose completions are interleaved; tokens of completions of 3 and 1."""

import pytest
import torch

from preftune.objectives.advantages import (
    at_last_token,
    centred,
    gae,
    group_deviation,
    leave_one_out,
    moments,
    reward_to_go,
    standardized,
    whitened,
)
from preftune.types import Rewards

REWARD = torch.tensor([3.0, 0.0, 1.0, 2.0, 5.0, 7.0], dtype=torch.float64)
GROUPS = Rewards(reward=REWARD, group=torch.tensor([7, 4, 7, 7, 4, 9]))


def test_centred():
    """Means 2, 2.5 and 7."""
    assert centred(REWARD, GROUPS).tolist() == pytest.approx([1.0, -2.5, -1.0, 0.0, 2.5, 0.0])


def test_leave_one_out():
    """The others' means: 1.5, 5, 2.5, 2, 0; the last has no others."""
    expected = [1.5, -5.0, -1.5, 0.0, 5.0, 0.0]
    assert leave_one_out(REWARD, GROUPS).tolist() == pytest.approx(expected)


def test_standardized():
    """Deviations 1, 5 / sqrt 2 = 3.535534 and 0."""
    deviation = [12.5**0.5, 1.0, 0.0]  # in the order of the group ids
    assert group_deviation(REWARD, GROUPS).tolist() == pytest.approx(deviation)
    expected = [1 / 1.5, -2.5 / (12.5**0.5 + 0.5), -1 / 1.5, 0.0, 2.5 / (12.5**0.5 + 0.5), 0.0]
    assert standardized(REWARD, GROUPS, eps=0.5).tolist() == pytest.approx(expected)


def test_equal_rewards_have_no_advantage_whatever_the_rounding():
    """The mean of three times 0.1 is not 0.1 in fp32; divided by its own deviation that would be of order 1."""
    reward = torch.full((3,), 0.1)
    signal = Rewards(reward=reward, group=torch.zeros(3, dtype=torch.long))
    assert float(reward.sum()) / 3 != float(reward[0])
    for advantage in (
        centred(reward, signal),
        leave_one_out(reward, signal),
        standardized(reward, signal, 1e-12),
    ):
        assert advantage.tolist() == [0.0, 0.0, 0.0]


def test_three_baselines_are_one_up_to_a_factor():
    """leave one out = K / (K - 1) * centred; standardized = centred / (deviation + eps)."""
    random = torch.Generator().manual_seed(0)
    reward = torch.randn(12, generator=random, dtype=torch.float64)
    signal = Rewards(reward=reward, group=torch.arange(12) % 3)
    middle = centred(reward, signal)
    torch.testing.assert_close(leave_one_out(reward, signal), 4 / 3 * middle)
    others = torch.stack(
        [reward[(signal.group == signal.group[i]) & (torch.arange(12) != i)].mean() for i in range(12)]
    )
    torch.testing.assert_close(leave_one_out(reward, signal), reward - others)
    deviation = torch.stack([reward[signal.group == g].std() for g in signal.group])
    torch.testing.assert_close(standardized(reward, signal, 1e-3), middle / (deviation + 1e-3))


LENGTHS = torch.tensor([3, 1])


def test_at_last_token():
    assert at_last_token(torch.tensor([5.0, -2.0]), LENGTHS).tolist() == [0.0, 0.0, 5.0, -2.0]


def test_gae():
    """gamma = .5, lam = .4: d = 1 + 1 - 1, 0 + 2 - 2, 2 - 4 = 1, 0, -2; A = -2, 0 + .2 * -2, 1 + .2 * -.4."""
    rewards, values = (
        torch.tensor(x, dtype=torch.float64) for x in ([1.0, 0.0, 2.0, 3.0], [1.0, 2.0, 4.0, 1.0])
    )
    found = gae(rewards, values, LENGTHS, gamma=0.5, lam=0.4)
    assert found.tolist() == pytest.approx([0.92, -0.4, -2.0, 2.0])


def test_reward_to_go():
    """gamma = .5: 2; 0 + 1; 1 + .5 * 1."""
    rewards = torch.tensor([1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    assert reward_to_go(rewards, LENGTHS, gamma=0.5).tolist() == pytest.approx([1.5, 1.0, 2.0, 3.0])


def one_by_one(rewards, values, lengths, gamma, lam):
    """The definition: A_t = sum over k of (gamma * lam)^k d_t+k."""
    found = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        following = [*v.tolist()[1:], 0.0]
        d = [a + gamma * b - c for a, b, c in zip(r.tolist(), following, v.tolist(), strict=True)]
        found += [sum((gamma * lam) ** k * x for k, x in enumerate(d[t:])) for t in range(len(d))]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.8, 1.0)])
def test_gae_is_its_definition(gamma, lam):
    random = torch.Generator().manual_seed(1)
    lengths = [2, 7, 1, 4]
    rewards, values = torch.randn(2, 14, generator=random, dtype=torch.float64)
    found = gae(rewards, values, torch.tensor(lengths), gamma, lam)
    torch.testing.assert_close(found, one_by_one(rewards, values, lengths, gamma, lam))


def test_gae_that_looks_to_the_end_is_the_return_less_the_value():
    random = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 4, generator=random, dtype=torch.float64)
    found = gae(rewards, values, LENGTHS, 0.9, 1.0)
    torch.testing.assert_close(found + values, reward_to_go(rewards, LENGTHS, 0.9))


def test_whitened():
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7."""
    values = torch.tensor([1.0, 2.0, 6.0])
    found = moments(values)
    assert {name: value.item() for name, value in found.items()} == {"mean": 3.0, "variance": 7.0}
    white = whitened(values, **found)
    assert white.dtype == torch.float32
    assert white.tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])


def test_a_variance_of_nearly_nothing_does_not_blow_up():
    """(v - mean) / sqrt(variance + 1e-8)."""
    values, zero = torch.tensor([3e-4], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert whitened(values, zero, zero).tolist() == pytest.approx([3.0])


def test_a_single_value_whitens_to_nothing():
    value = torch.tensor([2.5])
    assert moments(value)["variance"].item() == 0.0
    assert whitened(value, **moments(value)).tolist() == [0.0]
