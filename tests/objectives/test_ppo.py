"""PPO: rewards 0, 3 and 1 at the tokens, values 1, 2 and .5, gamma .5, lam .4."""

import math
from dataclasses import replace

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.ppo import PPO
from preftune.types import StepView
from tests.objectives.samples import (
    K3,
    LOGP,
    RATIOS,
    SAMPLES,
    check_samples,
    couple,
    losses_of,
    sample_scores,
)

BEHAVIOUR = [p - math.log(r) for p, r in zip(LOGP, RATIOS, strict=True)]


def white(raw: list[float]) -> list[float]:
    mean = sum(raw) / len(raw)
    variance = sum((x - mean) ** 2 for x in raw) / (len(raw) - 1)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in raw]


def value_slopes(objective: PPO) -> list[float]:
    losses, scores = losses_of(objective)
    return torch.autograd.grad(losses.per_unit.sum(), scores.value)[0].tolist()


def test_without_a_penalty():
    """d = 0 + .5 * 2 - 1 = 0, 3 - 2 = 1, 1 - .5 = .5; A' = .2, 1, .5, which whiten to -, +, -; R = 1.2, 3, 1.

    Ratios 1.5 (bad: on), .5 (good: on), .7 (bad: flat at .8).
    """
    a, critic = white([0.2, 1.0, 0.5]), [0.02, 0.5, 0.125]
    policy = [-1.5 * a[0], -0.5 * a[1], -0.8 * a[2]]
    objective = PPO(normalize_returns=False, kl_coef=0.0, gamma=0.5, lam=0.4, vf_coef=0.6)
    check_samples(
        objective,
        units=[p + 0.6 * c for p, c in zip(policy, critic, strict=True)],
        slopes=[-1.5 * a[0], -0.5 * a[1], 0.0],
        metrics={
            "advantage/abs": [abs(x) for x in a],
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [0.0, 0.0, 1.0],
            "value_loss": critic,
        },
    )
    assert value_slopes(objective) == pytest.approx([0.6 * x for x in (-0.2, -1.0, -0.5)])


def test_the_penalty_is_the_sampler_s_log_ratio():
    """r_t = -.4 * (log mu - log ref) and the reward at the last token; gamma = lam = 1, so A' = sum of r - V."""
    r = [-0.4 * (b - ref) for b, ref in zip(BEHAVIOUR, (-1.5, -1.75, -1.0), strict=True)]
    raw = [r[0] + r[1] + 3 - 1.0, r[1] + 3 - 2.0, r[2] + 1 - 0.5]
    a, critic = white(raw), [x * x / 2 for x in raw]
    assert [x > 0 for x in a] == [True, False, False]
    check_samples(
        PPO(normalize_returns=False, kl_coef=0.4, lam=1.0, clip=0.6, vf_coef=0.0),
        units=[-q * x for q, x in zip(RATIOS, a, strict=True)],
        slopes=[-q * x for q, x in zip(RATIOS, a, strict=True)],
        metrics={
            "advantage/abs": [abs(x) for x in a],
            "kl": K3,
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [0.0] * 3,
            "value_loss": critic,
        },
    )


def test_clipped_values_are_measured_from_those_at_sampling():
    """V at sampling .5, 2.5, .25: d = .75, .5, .75; A' = .85, .5, .75; R = 1.35, 3, 1.

    V within .3 of them: .8, 2.2, .5. The first is outside on the way to R: flat at (.8 - 1.35)^2 / 2. The
    second has fallen away from R: (2 - 3)^2 / 2 is more than (2.2 - 3)^2 / 2, and has its gradient.
    """
    a, critic = white([0.85, 0.5, 0.75]), [0.15125, 0.5, 0.125]
    objective = PPO(
        normalize_returns=False, kl_coef=0.0, gamma=0.5, lam=0.4, vf_coef=1.0, value_clip=0.3, clip=0.6
    )
    check_samples(
        objective,
        units=[-q * x + c for q, x, c in zip(RATIOS, a, critic, strict=True)],
        slopes=[-q * x for q, x in zip(RATIOS, a, strict=True)],
        metrics={
            "advantage/abs": [abs(x) for x in a],
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [0.0] * 3,
            "value_loss": critic,
        },
    )
    assert value_slopes(objective) == pytest.approx([0.0, -1.0, -0.5])


def test_dual_clip():
    """1.5 and bad: at most 1.2 times the advantage, and flat."""
    a = white([0.2, 1.0, 0.5])
    check_samples(
        PPO(normalize_returns=False, kl_coef=0.0, gamma=0.5, lam=0.4, vf_coef=0.0, dual_clip=1.2),
        units=[-1.2 * a[0], -0.5 * a[1], -0.8 * a[2]],
        slopes=[0.0, -0.5 * a[1], 0.0],
        metrics={
            "advantage/abs": [abs(x) for x in a],
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [1.0, 0.0, 1.0],
            "value_loss": [0.02, 0.5, 0.125],
        },
    )


def test_couple_gives_the_moments_of_the_step_and_remembers_nothing():
    """A' = .2, 1, .5: mean 17 / 30, variance .49 / 3."""
    objective = PPO(normalize_returns=False, kl_coef=0.0, gamma=0.5, lam=0.4)
    assert objective.initial_state() == {}
    coupling, state = couple(objective, sample_scores(objective))
    assert {name: value.item() for name, value in coupling.whole.items()} == pytest.approx(
        {"mean": 17 / 30, "variance": 0.49 / 3}
    )
    assert state == {}


def test_normalized_returns_start_at_their_mean_and_do_not_depend_on_the_scale_of_the_reward():
    """gamma = lam = 1: the returns of the tokens are 3, 3 and 1. A head that is 0 everywhere predicts their
    mean 7 / 3 on their scale, the deviation sqrt(4 / 3); its targets are (R - m) / s.
    """
    objective = PPO(kl_coef=0.0, lam=1.0, vf_coef=1.0)
    scores = replace(sample_scores(objective), value=torch.zeros(3, dtype=torch.float64))
    coupling, state = couple(objective, scores)
    mean, std = 7 / 3, math.sqrt(4 / 3)
    assert coupling.whole["value_mean"].item() == pytest.approx(mean)
    assert coupling.whole["value_std"].item() == pytest.approx(std)
    assert state["steps"].item() == 1 and sorted(state) == ["mean", "std", "steps"]
    found = objective(replace(scores, coupling=coupling), SAMPLES)
    raw = [3 - mean, 3 - mean, 1 - mean]
    assert found.metrics["value_loss"].tolist() == pytest.approx([(x / std) ** 2 / 2 for x in raw])
    assert found.metrics["advantage/abs"].tolist() == pytest.approx([abs(x) for x in white(raw)])
    large = replace(SAMPLES, reward=100 * SAMPLES.reward - 60)
    step = StepView(lengths=scores.lengths, prompt=scores.lengths, signal=large, scores=scores)
    other = objective(replace(scores, coupling=objective.couple(step, objective.initial_state())[0]), large)
    torch.testing.assert_close(other.per_unit, found.per_unit, rtol=1e-6, atol=1e-6)


def test_a_critic_that_is_right_leaves_nothing_to_learn():
    """lam = 1 and values equal to the returns: every advantage is 0, so is the critic's loss."""
    objective = PPO(normalize_returns=False, kl_coef=0.0, lam=1.0)
    scores = replace(sample_scores(objective), value=torch.tensor([3.0, 3.0, 1.0], dtype=torch.float64))
    losses = objective(replace(scores, coupling=couple(objective, scores)[0]), SAMPLES)
    assert losses.per_unit.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [("value_clip", 1e-6, (0.0, -1.0, math.inf)), ("dual_clip", 1.000001, (1.0, 0.5, math.inf))],
)
def test_ranges_of_what_is_off_by_default(field, taken, refused, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    PPO(**{field: taken})
    for value in refused:
        with pytest.raises(ConfigError, match=f"^ppo: {field} is out of range"):
            PPO(**{field: value})


def test_needs():
    assert PPO().needs == {"behaviour_logp", "coupling", "value", "ref_logp"}
    assert PPO(kl_coef=0.0).needs == {"behaviour_logp", "coupling", "value"}
    assert PPO(kl_coef=0.0, value_clip=0.2).needs == {
        "behaviour_logp",
        "coupling",
        "value",
        "behaviour_value",
    }
    assert PPO().couples == {"scores"}
