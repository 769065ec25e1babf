"""Reward-aware RPO: beta D = .2 on the golden pair, rewards 2.5 and .5."""

import math

import pytest
import torch

from preftune.objectives.era import ERA
from preftune.objectives.exo import EXO
from preftune.objectives.reward_aware_rpo import RewardAwareRPO
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.types import Rewards
from tests.objectives.golden import PAIR, assert_same, check_pair, gradient, make_scores, random_scores, sigma

GAP = Rewards(reward=torch.tensor([2.5, 0.5], dtype=torch.float64), group=torch.tensor([0, 0]))


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_golden_backward():
    """Target sigma(.5 * 2), policy sigma(.2); slope .1 (sigma(.2) - sigma(1))."""
    slope = 0.1 * (sigma(0.2) - sigma(1.0))
    check_pair(
        RewardAwareRPO(beta=0.1, eta=0.5),
        value=kl(sigma(1.0), sigma(0.2)),
        slopes=(slope, -slope),
        rewards=(0.1, -0.1),
        signal=GAP,
    )


def test_golden_forward():
    """The arguments swapped; slope .1 q (1 - q) (.2 - 1)."""
    slope = 0.1 * sigma(0.2) * sigma(-0.2) * (0.2 - 1.0)
    check_pair(
        RewardAwareRPO(beta=0.1, eta=0.5, distance="forward_kl"),
        value=kl(sigma(0.2), sigma(1.0)),
        slopes=(slope, -slope),
        rewards=(0.1, -0.1),
        signal=GAP,
    )


def test_golden_squared():
    """(.2 - 1)^2, slope 2 * -.8 * .1."""
    check_pair(
        RewardAwareRPO(beta=0.1, eta=0.5, distance="squared"),
        value=0.64,
        slopes=(-0.16, 0.16),
        rewards=(0.1, -0.1),
        signal=GAP,
    )


def test_squared_is_reward_distillation():
    assert_same(RewardAwareRPO(beta=0.4, eta=1.0, distance="squared"), RewardDistillation(beta=0.4))


def test_forward_is_exo_with_its_smoothing_set_by_the_rewards():
    """eta * (1 - 0) = log((1 - e) / e)."""
    objective = RewardAwareRPO(beta=0.4, eta=math.log(0.8 / 0.2), distance="forward_kl")
    assert_same(objective, EXO(beta=0.4, label_smoothing=0.2))


def test_backward_is_era_with_a_uniform_reference():
    """ERA with gamma -> 0 has no reference; here one that gives every completion the same."""
    rewards = Rewards(
        reward=torch.tensor([0.3, 1.5, -0.2, 0.9], dtype=torch.float64), group=torch.tensor([0, 0, 0, 1])
    )
    results = []
    for objective in (RewardAwareRPO(beta=1.0, eta=0.7), ERA(beta=0.7, gamma=0.0)):
        given, _ = random_scores()
        scores = make_scores(objective, [-3.0, -2.5, -4.0, -1.0], [-2.0] * 4, given.lengths.tolist())
        losses = objective(scores, rewards)
        results.append((losses.per_unit.detach(), losses.weight, torch.tensor(gradient(losses, scores))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", ["backward_kl", "forward_kl", "squared"])
def test_it_rests_where_the_differences_agree(distance):
    """beta D = eta dr, at ref * exp(eta r / beta)."""
    objective = RewardAwareRPO(beta=0.5, eta=0.25, distance=distance)
    scores = make_scores(objective, (-10.0, -13.0), (-11.0, -13.0), (5, 8))  # D = 1, dr = 2
    losses = objective(scores, GAP)
    assert losses.per_unit.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient(losses, scores) == pytest.approx([0.0] * 13, abs=1e-12)
    assert len(PAIR.chosen) == len(losses.per_unit)
