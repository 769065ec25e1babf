"""Ratios, the clipped loss in each of its regions, and the estimators of a KL divergence."""

import math

import pytest
import torch

from preftune.objectives.clipping import (
    clipped_loss,
    is_clipped,
    kl_estimate,
    mean_ratio,
    sequence_ratio,
    token_ratio,
)
from preftune.objectives.grpo import GRPO
from tests.objectives.samples import numbers, sample_scores


def test_ratios():
    """Of tokens 1.5, .5 and .7; of the completions 1.5 * .5 and .7, and per token sqrt .75 and .7."""
    scores = sample_scores(GRPO())
    assert token_ratio(scores).tolist() == pytest.approx([1.5, 0.5, 0.7])
    assert sequence_ratio(scores).tolist() == pytest.approx([0.75, 0.7])
    assert mean_ratio(scores).tolist() == pytest.approx([0.75**0.5, 0.7])


# ratio, A, loss at low .2 and high .3, its slope, loss with dual 3, its slope
REGIONS = [
    (1.0, 2.0, -2.0, -2.0, -2.0, -2.0),
    (1.4, 2.0, -2.6, 0.0, -2.6, 0.0),  # above, and good: enough
    (0.7, 2.0, -1.4, -2.0, -1.4, -2.0),  # below, and good: back up
    (1.4, -2.0, 2.8, 2.0, 2.8, 2.0),  # above, and bad: back down
    (0.7, -2.0, 1.6, 0.0, 1.6, 0.0),  # below, and bad: enough
    (5.0, -2.0, 10.0, 2.0, 6.0, 0.0),  # far above, and bad: the second clip
    (5.0, 2.0, -2.6, 0.0, -2.6, 0.0),
    (5.0, 0.0, 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "dual_loss", "dual_slope"), REGIONS)
def test_clipped_loss(ratio, advantage, loss, slope, dual_loss, dual_slope):
    for dual, value, gradient in ((None, loss, slope), (3.0, dual_loss, dual_slope)):
        at = numbers([ratio]).requires_grad_()
        found = clipped_loss(at, numbers([advantage]), 0.2, 0.3, dual)
        assert found.tolist() == pytest.approx([value])
        assert torch.autograd.grad(found.sum(), at)[0].tolist() == pytest.approx([gradient])
        flat = is_clipped(at, numbers([advantage]), 0.2, 0.3, dual).tolist()
        assert flat == [gradient == 0 and advantage != 0]


def test_a_unit_at_the_edge_is_not_clipped():
    edge = numbers([1.3, 0.8, 3.0])
    assert is_clipped(edge, numbers([1.0, -1.0, -1.0]), 0.2, 0.3, 3.0).tolist() == [False] * 3


def test_kl_estimates():
    """x = .5 and -.25: x; x^2 / 2; e^-x - 1 + x."""
    x = numbers([0.5, -0.25])
    assert kl_estimate("k1", x).tolist() == [0.5, -0.25]
    assert kl_estimate("k2", x).tolist() == pytest.approx([0.125, 0.03125])
    expected = [math.exp(-0.5) - 0.5, math.exp(0.25) - 1.25]
    assert kl_estimate("k3", x).tolist() == pytest.approx(expected)


def test_kl_estimates_are_finite_far_away_and_exact_near_zero():
    far = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    found = kl_estimate("k3", far)
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(torch.autograd.grad(found.sum(), far)[0]).all())
    assert kl_estimate("k3", numbers([1e-6])).tolist() == pytest.approx([5e-13], rel=1e-3)


def test_estimators_agree_in_expectation_but_k2():
    """Over all tokens, weighted by the policy: k1 and k3 are KL(pi || ref) exactly, k2 only nearly."""
    pi, ref = numbers([0.5, 0.3, 0.2]), numbers([0.2, 0.5, 0.3])
    x = pi.log() - ref.log()
    kl = (pi * x).sum().item()
    assert (pi * kl_estimate("k1", x)).sum().item() == pytest.approx(kl)
    assert (pi * kl_estimate("k3", x)).sum().item() == pytest.approx(kl)
    assert (pi * kl_estimate("k2", x)).sum().item() == pytest.approx(kl, rel=0.2)
    assert (pi * kl_estimate("k2", x)).sum().item() != pytest.approx(kl, rel=1e-2)
