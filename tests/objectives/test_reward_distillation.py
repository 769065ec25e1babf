"""Reward distillation: beta D against the gap of rewards, over all pairs of a group."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import check_pair

LOGP = [-1.0, -2.0, -4.0, -3.0, -1.0, -2.0]
REWARDS = Rewards(
    reward=torch.tensor([0.5, 2.0, 1.0, 7.0, -1.0, 3.0], dtype=torch.float64),
    group=torch.tensor([0, 0, 0, 1, 2, 2]),
)


def group_scores() -> TokenScores:
    """Single tokens, reference -2: log-ratios 1, 0, -2 | -1 | 1, 0; groups of 3, 1 and 2."""
    return TokenScores(
        logp=torch.tensor(LOGP, dtype=torch.float64, requires_grad=True),
        ref_logp=torch.full((6,), -2.0).double(),
        lengths=torch.ones(6, dtype=torch.long),
    )


def test_golden():
    """(.1 * 2 - 2)^2 = 3.24, slope 2 * -1.8 * .1."""
    gap = Rewards(reward=torch.tensor([2.5, 0.5]).double(), group=torch.tensor([0, 0]))
    check_pair(RewardDistillation(), value=3.24, slopes=(-0.36, 0.36), rewards=(0.1, -0.1), signal=gap)


def test_the_order_of_the_two_does_not_matter():
    gap = Rewards(reward=torch.tensor([0.5, 2.5]).double(), group=torch.tensor([0, 0]))
    scores = TokenScores(
        logp=torch.tensor([-14.0, -10.0]), ref_logp=torch.tensor([-13.0, -11.0]), lengths=torch.tensor([1, 1])
    )
    assert RewardDistillation()(scores, gap).per_unit.item() == pytest.approx(3.24)


def test_every_group_weighs_the_same():
    """Three pairs of the first group, none of the second, one of the third: ((mean of 3) + (1)) / 2."""
    scores, objective = group_scores(), RewardDistillation(beta=0.5)
    residuals = [  # 0.5 * difference of log-ratios - difference of rewards
        0.5 * (1 - 0) - (0.5 - 2.0),
        0.5 * (1 + 2) - (0.5 - 1.0),
        0.5 * (0 + 2) - (2.0 - 1.0),
        0.5 * (1 - 0) - (-1.0 - 3.0),
    ]
    weight = objective.weights(scores.lengths, REWARDS)
    assert sorted(weight.tolist()) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    loss = reduce_losses(objective(scores, REWARDS), float(weight.sum()))
    assert loss.item() == pytest.approx(
        (sum(r**2 for r in residuals[:3]) / 3 + residuals[3] ** 2) / 2, rel=1e-6
    )


def test_all_pairs_are_the_variance_of_the_residual():
    """sum over pairs (a_i - a_j)^2 = K sum_i (a_i - mean)^2 with a = beta h - r, K = 3 with as many pairs."""
    scores = group_scores()
    losses = RewardDistillation(beta=0.5)(scores, REWARDS)
    a = torch.tensor([0.5 * 1 - 0.5, 0.0 - 2.0, 0.5 * -2 - 1.0])
    total = (losses.per_unit * losses.weight)[losses.weight < 0.5].sum().item()
    assert total == pytest.approx((a - a.mean()).square().sum().item(), rel=1e-6)
