"""INPO: ipo with sums against a mixture, in log space, of reference and sampling policy."""

import pytest
import torch

from preftune.objectives.bpo import BPO
from preftune.objectives.inpo import INPO
from preftune.objectives.ipo import IPO
from preftune.types import Pairs, TokenScores
from tests.objectives.golden import PAIR, check_pair, gradient, make_scores, random_scores

BEHAVIOUR = (-12.0, -12.0)  # against the reference's -11 and -13


def test_golden():
    """tau / eta = .25: anchors .25 * -11 + .75 * -12 = -11.75 and .25 * -13 + .75 * -12 = -12.25; g = 1.75
    and -1.75; (3.5 - 1 / (2 * .2))^2 = 1.
    """
    check_pair(
        INPO(eta=0.2, tau=0.05), behaviour=BEHAVIOUR, value=1.0, slopes=(2.0, -2.0), rewards=(0.35, -0.35)
    )


def test_soft_labels():
    """(.9 - .5) / .2 = 2."""
    soft = Pairs(
        chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.9], dtype=torch.float64)
    )
    check_pair(
        INPO(eta=0.2, tau=0.05),
        behaviour=BEHAVIOUR,
        value=2.25,
        slopes=(3.0, -3.0),
        rewards=(0.35, -0.35),
        signal=soft,
    )


def run(objective):
    given, pairs = random_scores()
    scores = TokenScores(
        logp=given.logp.detach().requires_grad_(),
        lengths=given.lengths,
        ref_logp=given.ref_logp,
        behaviour_logp=given.ref_logp.flip(0),
    )
    losses = objective(scores, pairs)
    return losses.per_unit.detach(), torch.tensor(gradient(losses, scores))


@pytest.mark.parametrize(
    ("tau", "kin"),
    [(0.4 * (1 - 1e-9), IPO(tau=0.4, reduction="sum")), (0.4e-9, BPO(beta=0.4, link="square"))],
)
def test_limits(tau, kin):
    """tau -> eta is ipo against the reference, tau -> 0 ipo against the sampling policy."""
    torch.testing.assert_close(run(INPO(eta=0.4, tau=tau)), run(kin), rtol=1e-6, atol=1e-6)


def test_it_rests_at_the_mirror_descent_step():
    """Every ordered pair of three arms from a uniform policy: the optimum is proportional to
    ref^(tau/eta) * behaviour^(1 - tau/eta) * exp(win rate / eta)."""
    wins = torch.tensor(
        [[0.5, 0.9, 0.4], [0.1, 0.5, 0.7], [0.6, 0.3, 0.5]], dtype=torch.float64
    )  # not transitive
    ref, sampled = (
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log(),
        torch.full((3,), 1 / 3, dtype=torch.float64).log(),
    )
    objective = INPO(eta=0.5, tau=0.2)
    best = (0.4 * ref + 0.6 * sampled + wins.mean(1) / 0.5).log_softmax(0)
    first, second = (
        index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    )
    scores = make_scores(objective, best.tolist(), ref.tolist(), (1, 1, 1), sampled.tolist())
    slopes = gradient(
        objective(scores, Pairs(chosen=first, rejected=second, probability=wins.flatten())), scores
    )
    assert slopes == pytest.approx([0.0] * 3, abs=1e-12)
