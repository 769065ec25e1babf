"""REINFORCE++: returns of tokens, whitened over the step."""

import math
from dataclasses import replace

import pytest
import torch

from preftune.objectives.ppo import PPO
from preftune.objectives.reinforce_plus_plus import ReinforcePlusPlus
from preftune.types import Rewards
from tests.objectives.samples import (
    K3,
    LOGP,
    RATIOS,
    check_samples,
    couple,
    losses_of,
    numbers,
    sample_scores,
)


def test_without_a_penalty():
    """gamma = .5: returns 1.5, 3 and 1; mean 5.5 / 3, variance (1 + 12.25 + 6.25) / 9 / 2 = 13 / 12. Ratios
    1.5 (bad: on), .5 (good: on), .7 (bad: flat at .8).
    """
    a = [(x - 5.5 / 3) / math.sqrt(13 / 12 + 1e-8) for x in (1.5, 3.0, 1.0)]
    check_samples(
        ReinforcePlusPlus(beta=0.0, gamma=0.5),
        units=[-1.5 * a[0], -0.5 * a[1], -0.8 * a[2]],
        slopes=[-1.5 * a[0], -0.5 * a[1], 0.0],
        metrics={
            "advantage/abs": [abs(x) for x in a],
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [0.0, 0.0, 1.0],
        },
    )


def test_the_penalty_is_the_sampler_s_log_ratio():
    """r_t = -.4 * (log mu - log ref), and 3 or 1 at the last token; returns from the back."""
    behaviour = [p - math.log(r) for p, r in zip(LOGP, RATIOS, strict=True)]
    penalty = [-0.4 * (b - r) for b, r in zip(behaviour, (-1.5, -1.75, -1.0), strict=True)]
    returns = [penalty[0] + penalty[1] + 3, penalty[1] + 3, penalty[2] + 1]
    mean = sum(returns) / 3
    variance = sum((x - mean) ** 2 for x in returns) / 2
    a = [(x - mean) / math.sqrt(variance + 1e-8) for x in returns]
    assert (a[0] > 0, a[1] > 0, a[2] > 0) == (True, True, False)
    check_samples(
        ReinforcePlusPlus(beta=0.4, clip=0.6),
        units=[-1.5 * a[0], -0.5 * a[1], -0.7 * a[2]],
        slopes=[-1.5 * a[0], -0.5 * a[1], -0.7 * a[2]],
        metrics={
            "advantage/abs": [abs(x) for x in a],
            "kl": K3,
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [0.0] * 3,
        },
    )


def test_couple_gives_the_moments_of_the_step_and_remembers_nothing():
    objective = ReinforcePlusPlus(beta=0.0, gamma=0.5)
    assert objective.initial_state() == {}
    coupling, state = couple(objective, sample_scores(objective))
    assert {name: value.item() for name, value in coupling.whole.items()} == pytest.approx(
        {"mean": 5.5 / 3, "variance": 13 / 12}
    )
    assert state == {}


def test_rewards_that_are_all_equal_teach_nothing():
    """Of completions without a penalty; the returns of all tokens are the same."""
    level = Rewards(reward=numbers([2.0, 2.0]), group=torch.tensor([0, 1]))
    losses, scores = losses_of(ReinforcePlusPlus(beta=0.0), level)
    assert torch.autograd.grad(losses.per_unit.sum(), scores.logp)[0].tolist() == [0.0, 0.0, 0.0]


def test_it_is_ppo_whose_critic_says_nothing():
    """Values of 0 and lam 1, the critic's own loss left out."""
    mine = ReinforcePlusPlus(beta=0.4, gamma=0.8)
    ppo = PPO(kl_coef=0.4, gamma=0.8, lam=1.0, vf_coef=0.0, value_clip=1.0)
    scores = replace(sample_scores(ppo), behaviour_value=torch.zeros(3, dtype=torch.float64))
    scores = replace(scores, coupling=couple(ppo, scores)[0])
    signal = Rewards(reward=numbers([3.0, 1.0]), group=torch.tensor([4, 4]))
    torch.testing.assert_close(losses_of(mine)[0].per_unit, ppo(scores, signal).per_unit)


def test_needs():
    assert ReinforcePlusPlus().needs == {"behaviour_logp", "coupling", "ref_logp"}
    assert ReinforcePlusPlus().couples == {"scores"}
    assert ReinforcePlusPlus(beta=0.0).needs == {"behaviour_logp", "coupling"}
    assert ReinforcePlusPlus(beta=0.0).couples == frozenset()
