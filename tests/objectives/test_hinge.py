"""Hinge losses: RSO's, and SLiC with its likelihood term."""

import pytest
import torch

from preftune.objectives.hinge import Hinge, SLiC
from preftune.objectives.sft import SFT
from preftune.types import Labels, TokenScores
from tests.objectives.golden import PAIR, check_pair, gradient, make_scores


def test_hinge():
    """1 - .1 * 2 = .8, slope -beta."""
    check_pair(Hinge(beta=0.1), value=0.8, slopes=(-0.1, 0.1), rewards=(0.1, -0.1))


def test_hinge_beyond_the_margin_is_at_rest():
    check_pair(Hinge(beta=0.6), value=0.0, slopes=(0.0, 0.0), rewards=(0.6, -0.6))


def test_slic_beyond_the_margin_is_likelihood():
    """lp(chosen) - lp(rejected) = 4 > 1: what is left is .1 * 10."""
    check_pair(SLiC(), value=1.0, slopes=(-0.1, 0.0), rewards=(-10.0, -14.0), extra={"nll": 10.0})


def test_slic_within_the_margin():
    """5 - 4 + .5 * 10; slopes -1 - .5 and 1."""
    check_pair(
        SLiC(delta=5.0, nll_weight=0.5),
        value=6.0,
        slopes=(-1.5, 1.0),
        rewards=(-10.0, -14.0),
        extra={"nll": 10.0},
    )


def test_slic_with_the_mean_over_tokens():
    """5 - 4 + .5 * 10 / 5; slopes -1 - .5 / 5 and 1."""
    check_pair(
        SLiC(delta=5.0, nll_weight=0.5, nll_scale="mean"),
        value=2.0,
        slopes=(-1.1, 1.0),
        rewards=(-10.0, -14.0),
        extra={"nll": 2.0},
    )


def test_slic_far_beyond_the_margin_is_sft_on_the_chosen():
    slic = SLiC(nll_weight=1.0, nll_scale="mean")
    scores = make_scores(slic, (-10.0, -140.0), (), (5, 8))
    sft = SFT(reduction="sequence_mean")
    labels = Labels(label=torch.tensor([1, -1]))
    unit = sft(TokenScores(logp=scores.logp, lengths=scores.lengths), labels)
    assert slic(scores, PAIR).per_unit.item() == pytest.approx((unit.per_unit * unit.weight).sum().item())
    assert gradient(slic(scores, PAIR), scores) == pytest.approx([-0.2] * 5 + [0.0] * 8)
