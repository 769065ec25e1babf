"""Cal-DPO: a logistic loss without beta, and SPPO's squares."""

import torch

from preftune.objectives.cal_dpo import CalDPO
from preftune.objectives.dpo import DPO
from preftune.objectives.sppo import SPPO
from tests.objectives.golden import assert_same, check_pair, random_scores, sigma


def test_golden():
    """log(1 + e^-2) + 16 + 16 = 32.126928; slopes -sigma(-2) - 8 and sigma(-2) + 8."""
    slope = -sigma(-2) - 8
    check_pair(
        CalDPO(beta=0.1, calibration_weight=1.0), value=32.126928, slopes=(slope, -slope), rewards=(0.1, -0.1)
    )


def test_it_is_dpo_of_beta_1_plus_sppo():
    scores, pairs = random_scores()
    parts = DPO(beta=1.0)(scores, pairs).per_unit + 0.3 * SPPO(beta=0.2, scale=1.0)(scores, pairs).per_unit
    torch.testing.assert_close(CalDPO(beta=0.2, calibration_weight=0.3)(scores, pairs).per_unit, parts)


def test_without_calibration_it_is_dpo_of_beta_1():
    assert_same(CalDPO(calibration_weight=0.0), DPO(beta=1.0))
