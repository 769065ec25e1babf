"""MallowsPO: the dispersion of a pair by hand, its bounds, and the scale that a step gives itself."""

import math
from dataclasses import replace

import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.dpo import DPO
from preftune.objectives.mallowspo import MallowsPO
from preftune.types import Coupling, Pairs, StepView, TokenScores
from tests.objectives.golden import (
    PAIR,
    assert_same,
    check_pair,
    gradient,
    log_sigma,
    make_scores,
    random_scores,
    sigma,
)


def test_fixed_scale():
    """Means per completion .1 and .3, together .2 (over all 13 tokens it would be .223): phi = .29 log 5."""
    phi = 0.29 * math.log(5)
    push = 0.1 * phi * sigma(-0.2 * phi)
    check_pair(
        MallowsPO(scale=0.29),
        value=-log_sigma(0.2 * phi),
        slopes=(-push, push),
        rewards=(0.1, -0.1),
        more={"ref_entropy_share": (0.5, 2.4)},
        extra={"dispersion": phi},
    )


@pytest.mark.parametrize(
    ("share", "phi"),
    [(0.0, 6 * math.log(10)), (1e-9, 6 * math.log(10)), (1e-5, 5 * math.log(10)), (1.0, 0.0), (1.0001, 0.0)],
)
def test_dispersion_is_bounded(share, phi):
    """A reference that is certain gives 13.8; one that knows nothing gives 0, and never a negative number."""
    scores = make_scores(
        MallowsPO(), (-10.0, -14.0), (-11.0, -13.0), (5, 8), ref_entropy_share=(5 * share, 8 * share)
    )
    losses = MallowsPO(beta=0.7, scale=1.0)(scores, PAIR)
    assert losses.metrics["dispersion"].item() == pytest.approx(phi, abs=1e-12)
    assert gradient(losses, scores)[0] == pytest.approx(-0.7 * phi * sigma(-1.4 * phi), abs=1e-12)


def test_dpo_at_a_dispersion_of_1():
    share = torch.full((14,), 1 / math.e, dtype=torch.float64)
    assert_same(MallowsPO(beta=0.3, scale=1.0), DPO(beta=0.3), ref_entropy_share=share)


def coupled(shares: list[float]) -> tuple[TokenScores, Pairs, Coupling]:
    """A step of single-token pairs; both completions of a pair have its share."""
    count = len(shares)
    scores = TokenScores(
        logp=torch.full((2 * count,), -1.0, dtype=torch.float64, requires_grad=True),
        ref_logp=torch.full((2 * count,), -1.0, dtype=torch.float64),
        lengths=torch.ones(2 * count, dtype=torch.long),
        ref_entropy_share=torch.tensor(shares, dtype=torch.float64).repeat_interleave(2),
    )
    pairs = Pairs(chosen=torch.arange(0, 2 * count, 2), rejected=torch.arange(1, 2 * count, 2))
    view = StepView(lengths=scores.lengths, prompt=torch.arange(2 * count), signal=pairs, scores=scores)
    coupling, state = MallowsPO().couple(view, MallowsPO().initial_state())
    assert state == MallowsPO().initial_state() == {}
    return replace(scores, coupling=coupling), pairs, coupling


def test_scale_of_the_step():
    """-log of .2 and .5: their mean is log(10) / 2, and the dispersions are 2 log 5 / log 10 and 2 log 2 /
    log 10.
    """
    scores, pairs, coupling = coupled([0.2, 0.5])
    assert coupling.whole["scale"].item() == pytest.approx(2 / math.log(10), rel=1e-12)
    losses = MallowsPO(beta=0.4)(scores, pairs)
    phi = [2 * math.log(5) / math.log(10), 2 * math.log(2) / math.log(10)]
    assert losses.metrics["dispersion"].tolist() == pytest.approx(phi, rel=1e-12)
    assert losses.metrics["dispersion"].mean().item() == pytest.approx(1.0, rel=1e-12)
    slopes = [s * 0.4 * one / 2 for one in phi for s in (-1, 1)]
    assert gradient(losses, scores) == pytest.approx(slopes, rel=1e-12)


def test_equal_dispersions_are_dpo():
    scores, pairs = random_scores()
    scores = replace(scores, ref_entropy_share=torch.full((14,), 0.03, dtype=torch.float64))
    view = StepView(lengths=scores.lengths, prompt=torch.arange(4), signal=pairs, scores=scores)
    coupling, _ = MallowsPO().couple(view, {})
    assert_same(MallowsPO(), DPO(), ref_entropy_share=scores.ref_entropy_share, coupling=coupling)


def test_a_step_of_which_the_reference_knows_nothing():
    """All dispersions are 0 and cannot be brought to a mean of 1: no gradient, and no NaN."""
    scores, pairs, coupling = coupled([1.0, 1.0])
    assert coupling.whole["scale"].item() == pytest.approx(1e6, rel=1e-9)
    losses = MallowsPO()(scores, pairs)
    assert losses.per_unit.tolist() == pytest.approx([math.log(2)] * 2)
    assert gradient(losses, scores) == [0.0] * 4


def test_a_fixed_scale_needs_no_pass_over_the_step():
    assert MallowsPO(scale=0.29).needs == {"ref_logp", "ref_entropy_share"}
    assert MallowsPO(scale=0.29).couples == frozenset()
    assert MallowsPO().needs == {"ref_logp", "ref_entropy_share", "coupling"}
    assert MallowsPO().couples == {"scores"}


def test_scale_is_above_zero():
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"^mallowspo: scale is out of range"):
            MallowsPO(scale=scale)
