"""BPO: dpo, ipo and hinge with the sampling policy as anchor."""

import pytest
import torch

from preftune.objectives.bpo import BPO
from preftune.objectives.dpo import DPO
from preftune.objectives.hinge import Hinge
from preftune.objectives.ipo import IPO
from preftune.types import Pairs, TokenScores
from tests.objectives.golden import PAIR, check_pair, gradient, log_sigma, random_scores, sigma

SOFT = Pairs(chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.8], dtype=torch.float64))


def test_golden_logistic():
    check_pair(BPO(), value=0.598139, slopes=(-0.1 * sigma(-0.2), 0.1 * sigma(-0.2)), rewards=(0.1, -0.1))


def test_golden_square():
    """(2 - 5)^2."""
    check_pair(BPO(link="square"), value=9.0, slopes=(-6.0, 6.0), rewards=(0.1, -0.1))


def test_golden_hinge():
    """1 - .2."""
    check_pair(BPO(link="hinge"), value=0.8, slopes=(-0.1, 0.1), rewards=(0.1, -0.1))


def test_soft_logistic():
    """-.8 log sigma(.2) - .2 log sigma(-.2); slope .1 (sigma(.2) - .8)."""
    slope = 0.1 * (sigma(0.2) - 0.8)
    value = -0.8 * log_sigma(0.2) - 0.2 * log_sigma(-0.2)
    check_pair(BPO(), value=value, slopes=(slope, -slope), rewards=(0.1, -0.1), signal=SOFT)


def test_soft_square():
    """Target (.8 - .5) / .1 = 3."""
    check_pair(BPO(link="square"), value=1.0, slopes=(-2.0, 2.0), rewards=(0.1, -0.1), signal=SOFT)


def test_soft_hinge():
    """.8 (1 - .2) + .2 (1 + .2) = .88; slope .1 (-.8 + .2)."""
    check_pair(BPO(link="hinge"), value=0.88, slopes=(-0.06, 0.06), rewards=(0.1, -0.1), signal=SOFT)


@pytest.mark.parametrize(
    ("link", "kin"),
    [("logistic", DPO(beta=0.4)), ("square", IPO(tau=0.4, reduction="sum")), ("hinge", Hinge(beta=0.4))],
)
def test_it_is_its_kin_where_the_reference_sampled_the_pairs(link, kin):
    """As in the first step of a run that starts at the reference."""
    results = []
    for objective in (BPO(beta=0.4, link=link), kin):
        given, pairs = random_scores()
        scores = TokenScores(
            logp=given.logp.detach().requires_grad_(),
            lengths=given.lengths,
            ref_logp=given.ref_logp,
            behaviour_logp=given.ref_logp,
        )
        losses = objective(scores, pairs)
        results.append((losses.per_unit.detach(), torch.tensor(gradient(losses, scores))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_the_reference_plays_no_part():
    assert BPO().needs == {"behaviour_logp"}
