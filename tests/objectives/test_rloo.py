"""RLOO, plain and clipped, and preference matching."""

import math
from dataclasses import replace

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.grpo import DrGRPO
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.rloo import RLOO, PreferenceMatching
from tests.objectives.samples import K3, SAMPLES, check_samples, losses_of, sample_scores


def test_plain():
    """R = 3 - .4 * .25 and 1 + .4 * .5 = 2.9 and 1.2: each less the other."""
    check_samples(
        RLOO(beta=0.4),
        units=[3 * 1.7, -1.5 * 1.7],
        slopes=[-1.7, -1.7, 1.7],
        metrics={"advantage/abs": [1.7, 1.7], "kl": K3},
    )


def test_clipped():
    """Ratios of the completions .75 and .7, A = 2 and -2. Good and below: -.75 * 2. Bad and below .8: flat at
    .8 * 2.
    """
    check_samples(
        RLOO(beta=0.0, clip=0.2),
        units=[-1.5, 1.6],
        slopes=[-1.5, -1.5, 0.0],
        metrics={"advantage/abs": [2.0, 2.0], "ratio/mean": [0.75, 0.7], "ratio/clipped": [0.0, 1.0]},
    )


def test_clipped_with_a_penalty():
    """A = 1.7 and -1.7; at .4 nothing is clipped."""
    check_samples(
        RLOO(beta=0.4, clip=0.4),
        units=[-0.75 * 1.7, 0.7 * 1.7],
        slopes=[-0.75 * 1.7, -0.75 * 1.7, 0.7 * 1.7],
        metrics={
            "advantage/abs": [1.7, 1.7],
            "kl": K3,
            "ratio/mean": [0.75, 0.7],
            "ratio/clipped": [0.0, 0.0],
        },
    )


def test_it_is_reinforce_with_the_others_mean():
    one, other = losses_of(RLOO(beta=0.4))[0], losses_of(REINFORCE(beta=0.4))[0]
    assert torch.equal(one.per_unit, other.per_unit)
    assert one.metrics.keys() == other.metrics.keys()


def test_on_the_policy_s_own_samples_the_clip_changes_no_gradient():
    scores = replace(
        sample_scores(RLOO(beta=0.4, clip=0.2)), behaviour_logp=sample_scores(RLOO()).logp.detach()
    )
    slopes = [
        torch.autograd.grad(RLOO(beta=0.4, clip=clip)(scores, SAMPLES).per_unit.sum(), scores.logp)[0]
        for clip in (None, 0.2)
    ]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_on_the_policy_s_own_samples_it_is_dr_grpo_up_to_a_factor():
    """Advantages K / (K - 1) = 2 times, and dr-grpo divides by max_tokens = 8."""
    objective = DrGRPO(max_tokens=8)
    scores = replace(sample_scores(objective), behaviour_logp=sample_scores(RLOO()).logp.detach())
    slopes = [
        torch.autograd.grad(one(scores, SAMPLES).per_unit.sum(), scores.logp)[0]
        for one in (RLOO(beta=0.0), objective)
    ]
    torch.testing.assert_close(slopes[0], 2 * 8 * slopes[1])


def test_preference_matching():
    """R = 3 + 3 and 1 + 1.5: advantages 3.5 and -3.5."""
    check_samples(
        PreferenceMatching(),
        units=[3 * 3.5, -1.5 * 3.5],
        slopes=[-3.5, -3.5, 3.5],
        metrics={"advantage/abs": [3.5, 3.5]},
    )


def test_preference_matching_is_rloo_with_a_flat_reference():
    """One that gives every completion the same log-probability, 0 for one."""
    flat = replace(sample_scores(RLOO()), ref_logp=torch.zeros(3, dtype=torch.float64))
    assert torch.equal(RLOO(beta=1.0)(flat, SAMPLES).per_unit, losses_of(PreferenceMatching())[0].per_unit)


def test_preference_matching_rests_where_the_policy_prefers_as_the_rewards_do():
    """log pi = r + constant: log-probabilities -3 and -1.5 are matched by rewards 0 and 1.5."""
    matched = replace(SAMPLES, reward=torch.tensor([7.0, 8.5], dtype=torch.float64))
    losses, scores = losses_of(PreferenceMatching(), matched)
    slopes = torch.autograd.grad(losses.per_unit.sum(), scores.logp)[0]
    assert slopes.abs().max() < 1e-12


def test_clip_s_range(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for wrong in (0.0, 1.0, math.inf):
        with pytest.raises(ConfigError, match=r"^rloo: clip is out of range"):
            RLOO(clip=wrong)


def test_needs():
    assert RLOO().needs == {"ref_logp"}
    assert RLOO(beta=0.0).needs == frozenset()
    assert RLOO(beta=0.0, clip=0.2).needs == {"behaviour_logp"}
