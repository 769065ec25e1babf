"""DPOP: the penalty sets in where the chosen completion falls below the reference."""

from preftune.objectives.dpo import DPO
from preftune.objectives.dpop import DPOP
from tests.objectives.golden import assert_same, check_pair, sigma


def test_golden_without_a_fall():
    """h(chosen) = 1: DPO's .598139."""
    slope = -0.1 * sigma(-0.2)
    check_pair(
        DPOP(beta=0.1, penalty=5.0),
        value=0.598139,
        slopes=(slope, -slope),
        rewards=(0.1, -0.1),
        extra={"dpop/fall": 0.0},
    )


def test_golden_with_a_fall():
    """h(chosen) = -1, D = 0: margin .1 * (0 - 5 * 1) = -.5, log(1 + e^.5) = .974077; d margin / d lp = .1 *
    (1 + 5).
    """
    check_pair(
        DPOP(beta=0.1, penalty=5.0),
        ref=(-9.0, -13.0),
        lengths=(1, 1),
        value=0.974077,
        slopes=(-0.6 * sigma(0.5), 0.1 * sigma(0.5)),
        rewards=(-0.1, -0.1),
        extra={"dpop/fall": 1.0},
    )


def test_without_a_penalty_it_is_dpo():
    assert_same(DPOP(beta=0.1, penalty=0.0), DPO(beta=0.1))
