"""ERA: rewards 2 and 0.5, beta .5, gamma .25: target t = (.5 * 1.5 + .25 * (-11 + 13)) / 1.25 = 1; policy 4."""

import pytest
import torch

from preftune.objectives.era import ERA
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import PAIR, check_pair, gradient, log_sigma, sigma

REWARDS = Rewards(reward=torch.tensor([2.0, 0.5]).double(), group=torch.tensor([0, 0]))


def test_golden():
    """KL(sigma(1) || sigma(4)); slope sigma(4) - sigma(1)."""
    value = sigma(1) * (log_sigma(1) - log_sigma(4)) + sigma(-1) * (log_sigma(-1) - log_sigma(-4))
    slope = sigma(4) - sigma(1)
    check_pair(
        ERA(beta=0.5, gamma=0.25), value=value, slopes=(slope, -slope), rewards=(-10.0, -14.0), signal=REWARDS
    )


def test_rests_at_the_tilted_distribution():
    """log pi = (beta r + gamma log ref) / (1 + gamma) + constant, over three completions."""
    beta, gamma = 0.7, 0.3
    reward, ref = torch.tensor([1.0, -2.0, 0.3]).double(), torch.tensor([-3.0, -1.0, -2.0]).double()
    logp = ((beta * reward + gamma * ref) / (1 + gamma) - 5).requires_grad_()
    scores = TokenScores(logp=logp, ref_logp=ref, lengths=torch.tensor([1, 1, 1]))
    losses = ERA(beta=beta, gamma=gamma)(scores, Rewards(reward=reward, group=torch.tensor([0, 0, 0])))
    assert losses.per_unit.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert gradient(losses, scores) == pytest.approx([0, 0, 0], abs=1e-12)
    assert losses.weight.tolist() == pytest.approx([1 / 3] * 3)
    assert PAIR.chosen.tolist() == [0]
