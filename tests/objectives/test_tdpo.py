"""TDPO: both variants by hand, which divergence is pushed, and DPO where nothing has moved."""

import math
from dataclasses import replace

import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.dpo import DPO
from preftune.objectives.tdpo import TDPO
from tests.objectives.golden import (
    PAIR,
    assert_same,
    check_pair,
    log_sigma,
    make_scores,
    random_scores,
    sigma,
)

KL = {"kl_from_ref": (0.5, 1.5)}  # K(chosen), K(rejected)
LOGGED = {"kl/chosen": 0.5, "kl/rejected": 1.5}


def test_tdpo1():
    """.1 (2 - (1.5 - .5)) = .1; rewards .1 (1 + .5) and .1 (-1 + 1.5)."""
    push = 0.1 * sigma(-0.1)
    check_pair(
        TDPO(variant="tdpo1"),
        value=0.644397,
        slopes=(-push, push),
        rewards=(0.15, 0.05),
        more=KL,
        extra=LOGGED,
    )


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_tdpo2(alpha):
    """.1 (2 - .5 (1.5 - .5)) = .15; rewards .1 (1 + .25) and .1 (-1 + .75)."""
    push = 0.1 * sigma(-0.15)
    check_pair(
        TDPO(alpha=alpha),
        value=-log_sigma(0.15),
        slopes=(-push, push),
        rewards=(0.125, -0.025),
        more=KL,
        extra=LOGGED,
    )


@pytest.mark.parametrize(
    ("objective", "of_chosen", "of_rejected"),
    [
        (TDPO(variant="tdpo1"), -0.1 * sigma(-0.1), 0.1 * sigma(-0.1)),
        (TDPO(), 0.0, 0.05 * sigma(-0.15)),
        (TDPO(beta=0.3, alpha=2.0), 0.0, 0.6 * sigma(0.0)),  # .3 (2 - 2 * 1) = 0
    ],
)
def test_gradient_of_the_divergences(objective, of_chosen, of_rejected):
    """TDPO1 draws the policy away from the reference along the chosen completion, TDPO2 does not."""
    scores = make_scores(objective, (-10.0, -14.0), (-11.0, -13.0), (5, 8), **KL)
    kl = scores.kl_from_ref.requires_grad_()
    losses = objective(replace(scores, kl_from_ref=kl), PAIR)
    (slopes,) = torch.autograd.grad(losses.per_unit.sum(), kl)
    assert slopes.tolist() == pytest.approx([of_chosen] * 5 + [of_rejected] * 8, rel=1e-9)


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_dpo_where_nothing_has_moved(variant):
    assert_same(
        TDPO(beta=0.3, variant=variant), DPO(beta=0.3), kl_from_ref=torch.zeros(14, dtype=torch.float64)
    )


def test_dpo_as_alpha_vanishes():
    kl = torch.rand(14, dtype=torch.float64)
    assert_same(TDPO(beta=0.3, alpha=1e-13), DPO(beta=0.3), kl_from_ref=kl)


def test_variants_agree_in_value_at_alpha_1():
    scores, pairs = random_scores()
    scores = replace(scores, kl_from_ref=torch.rand(14, dtype=torch.float64))
    one, two = (objective(scores, pairs).per_unit for objective in (TDPO(variant="tdpo1"), TDPO(alpha=1.0)))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def test_alpha_belongs_to_tdpo2():
    with pytest.raises(ConfigError, match="no effect"):
        TDPO(variant="tdpo1", alpha=0.5)
    for alpha in (0.0, -0.5, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"^tdpo: alpha is out of range"):
            TDPO(alpha=alpha)
