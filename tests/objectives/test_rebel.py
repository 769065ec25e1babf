"""REBEL: change of log-probability since sampling against differences of rewards."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.rebel import REBEL
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import check_pair

GAP = Rewards(reward=torch.tensor([2.5, 0.5], dtype=torch.float64), group=torch.tensor([0, 0]))
BEHAVIOUR = (-10.5, -12.0)  # against the policy's -10 and -14, the reference's -11 and -13: d = .5, -2


def test_golden_without_kl():
    """(2.5 - .5 * 2)^2 = 2.25, slope 2 * 1.5; scored with d / eta."""
    objective = REBEL(eta=0.5, kl_coef=0.0)
    check_pair(
        objective, behaviour=BEHAVIOUR, value=2.25, slopes=(3.0, -3.0), rewards=(1.0, -4.0), signal=GAP
    )
    assert objective.needs == {"behaviour_logp"}


def test_golden_with_kl():
    """KL at sampling: .5 and 1, so R = 2.5 - .2 * .5 = 2.4 and .5 - .2 * 1 = .3; (2.5 - .5 * 2.1)^2 = 1.45^2."""
    check_pair(
        REBEL(eta=0.5, kl_coef=0.2),
        behaviour=BEHAVIOUR,
        value=2.1025,
        slopes=(2.9, -2.9),
        rewards=(1.0, -4.0),
        signal=GAP,
    )


def group_scores() -> TokenScores:
    """Groups of 3, 1 and 2 single tokens; behaviour and reference both -2."""
    return TokenScores(
        logp=torch.tensor([-1.0, -2.0, -4.0, -3.0, -1.0, -2.0], dtype=torch.float64, requires_grad=True),
        ref_logp=torch.full((6,), -2.0).double(),
        behaviour_logp=torch.full((6,), -2.0).double(),
        lengths=torch.ones(6, dtype=torch.long),
    )


REWARDS = Rewards(
    reward=torch.tensor([0.5, 2.0, 1.0, 7.0, -1.0, 3.0], dtype=torch.float64),
    group=torch.tensor([0, 0, 0, 1, 2, 2]),
)


@pytest.mark.parametrize("beta", [0.25, 2.0])
def test_reward_distillation_is_rebel_from_the_reference(beta):
    """With eta = 1 / beta, times beta^2: the scale between the paper's form and that of its code."""
    scores, other = group_scores(), group_scores()
    rebel = REBEL(eta=1 / beta, kl_coef=0.0)
    distilled = RewardDistillation(beta=beta)(other, REWARDS)
    losses = rebel(scores, REWARDS)
    torch.testing.assert_close(beta**2 * losses.per_unit, distilled.per_unit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses.weight, distilled.weight)
    mine = torch.autograd.grad(reduce_losses(losses, 2.0), scores.logp)[0]
    theirs = torch.autograd.grad(reduce_losses(distilled, 2.0), other.logp)[0]
    torch.testing.assert_close(beta**2 * mine, theirs, rtol=1e-12, atol=1e-12)


def test_every_group_of_two_or_more_weighs_the_same():
    assert sorted(REBEL().weights(group_scores().lengths, REWARDS).tolist()) == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 1.0]
    )
