"""Robust DPO: the signed mixture of the two losses, and its unbiasedness."""

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.robust_dpo import RobustDPO
from tests.objectives.golden import PAIR, assert_same, check_pair, make_scores, sigma


def test_golden():
    """(.9 * .598139 - .1 * .798139) / .8; slope beta (-.9 sigma(-.2) - .1 sigma(.2)) / .8."""
    slope = 0.1 * (-0.9 * sigma(-0.2) - 0.1 * sigma(0.2)) / 0.8
    check_pair(
        RobustDPO(beta=0.1, label_smoothing=0.1), value=0.573139, slopes=(slope, -slope), rewards=(0.1, -0.1)
    )


def test_without_noise_it_is_dpo():
    assert_same(RobustDPO(label_smoothing=0.0), DPO())


def test_mean_over_flipped_labels_is_the_clean_loss():
    """(1 - e) * robust(pair) + e * robust(flipped pair) = DPO(pair): what it was made for."""
    e, robust = 0.3, RobustDPO(beta=0.5, label_smoothing=0.3)
    flipped = type(PAIR)(chosen=PAIR.rejected, rejected=PAIR.chosen)
    scores = make_scores(robust, (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    mean = (1 - e) * robust(scores, PAIR).per_unit + e * robust(scores, flipped).per_unit
    torch.testing.assert_close(mean, DPO(beta=0.5)(scores, PAIR).per_unit)


def test_falls_without_bound():
    scores = make_scores(RobustDPO(), (-10.0, -14000.0), (-10.0, -13.0), (5, 8))
    assert RobustDPO()(scores, PAIR).per_unit.item() == pytest.approx(-0.1 / 0.8 * 0.1 * 13987, rel=1e-6)
