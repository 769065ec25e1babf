"""GDPO: a soft label shrinks the margin."""

from preftune.objectives.dpo import DPO
from preftune.objectives.gdpo import GDPO
from tests.objectives.golden import assert_same, check_pair, sigma


def test_golden():
    """beta (2p - 1) D = .1 * .8 * 2 = .16: log(1 + e^-.16) = .616344."""
    slope = -0.08 * sigma(-0.16)
    check_pair(GDPO(beta=0.1, soft_label=0.9), value=0.616344, slopes=(slope, -slope), rewards=(0.1, -0.1))


def test_a_sure_label_is_dpo():
    assert_same(GDPO(beta=0.3, soft_label=1.0), DPO(beta=0.3))


def test_it_is_dpo_with_a_smaller_beta():
    assert_same(GDPO(beta=0.3, soft_label=0.75), DPO(beta=0.15))
