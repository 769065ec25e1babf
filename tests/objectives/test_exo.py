"""EXO: the binary KL of cDPO with its arguments swapped."""

import math

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.exo import EXO
from tests.objectives.golden import PAIR, check_pair, gradient, log_sigma, make_scores, sigma


def test_golden():
    """q = sigma(.2), p = .999: q log(q/p) + (1-q) log((1-q)/(1-p)); slope beta q (1-q) (.2 - log(p/(1-p)))."""
    slope = 0.1 * sigma(0.2) * sigma(-0.2) * (0.2 - math.log(999))
    check_pair(EXO(), value=2.422015, slopes=(slope, -slope), rewards=(0.1, -0.1))


def kl(q: float, p: float) -> float:
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def test_it_is_cdpo_with_the_arguments_swapped():
    """EXO = KL(q || p); cDPO = KL(p || q) + the entropy of p, with q = sigma(1) and p = .8."""
    scores = make_scores(EXO(), (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    q, p = sigma(1.0), 0.8
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    exo, cdpo = (kind(beta=0.5, label_smoothing=0.2)(scores, PAIR).per_unit.item() for kind in (EXO, DPO))
    assert exo == pytest.approx(kl(q, p), rel=1e-9)
    assert cdpo == pytest.approx(kl(p, q) + entropy, rel=1e-9)


def test_rests_where_cdpo_rests():
    """sigma(beta D) = 1 - e: with e = .2, beta D = ln 4."""
    objective = EXO(beta=1.0, label_smoothing=0.2)
    scores = make_scores(objective, (-11.0 + math.log(4), -13.0), (-11.0, -13.0), (5, 8))
    losses = objective(scores, PAIR)
    assert losses.per_unit.item() == pytest.approx(0.0, abs=1e-12)
    assert max(map(abs, gradient(losses, scores))) < 1e-12


def test_the_authors_target_is_a_smoothing_of_4_5e_5():
    """Log target (0, -10), unnormalised: q log q + (1 - q)(log(1 - q) + 10), larger by the log-sum of the target."""
    scores = make_scores(EXO(), (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    theirs = sigma(0.2) * log_sigma(0.2) + sigma(-0.2) * (log_sigma(-0.2) + 10)
    ours = EXO(label_smoothing=sigma(-10))(scores, PAIR).per_unit.item()
    assert theirs == pytest.approx(ours - math.log1p(math.exp(-10)), rel=1e-9)
    assert sigma(-10) == pytest.approx(4.5e-5, rel=0.01)


def test_wrongly_ordered_pairs_get_little_push():
    """Reverse KL seeks a mode: at beta D = -100 the slope is gone, where DPO's is full."""
    objective = EXO(beta=1.0)
    scores = make_scores(objective, (-110.0, -10.0), (-10.0, -10.0), (1, 1))
    assert abs(gradient(objective(scores, PAIR), scores)[0]) < 1e-30
    torch.testing.assert_close(torch.tensor(gradient(DPO(beta=1.0)(scores, PAIR), scores)), torch.tensor([-1.0, 1.0]))
