"""SPPO: log-ratios 1 and -1 against (P - 1/2) / beta and its opposite."""

import pytest
import torch

from preftune.objectives.sppo import SPPO
from preftune.types import Pairs
from tests.objectives.golden import PAIR, check_pair


def test_golden():
    """(1 - 5)^2 + (-1 + 5)^2 = 32, slopes 2 (1 - 5) and 2 (-1 + 5)."""
    check_pair(SPPO(beta=0.1, scale=1.0), value=32.0, slopes=(-8.0, 8.0), rewards=(0.1, -0.1))


def test_golden_with_the_half_of_the_paper():
    check_pair(SPPO(beta=0.1), value=16.0, slopes=(-4.0, 4.0), rewards=(0.1, -0.1))


def test_a_log_ratio_past_its_value_is_pulled_back():
    """beta = 1: values +-.5; log-ratios 1 and -1 overshoot: (.5^2 + .5^2) / 2, slopes +.5 and -.5."""
    check_pair(SPPO(beta=1.0), value=0.25, slopes=(0.5, -0.5), rewards=(1.0, -1.0))


def test_the_two_sides_are_apart():
    """h = 1 and 2: (1 - 5)^2 / 2 + (2 + 5)^2 / 2 = 8 + 24.5."""
    check_pair(SPPO(beta=0.1), ref=(-11.0, -16.0), value=32.5, slopes=(-4.0, 7.0), rewards=(0.1, 0.2))


@pytest.mark.parametrize(
    ("probability", "value", "slope"), [(1.0, 16.0, -4.0), (0.8, 4.0, -2.0), (0.5, 1.0, 1.0), (0.3, 9.0, 3.0)]
)
def test_soft_win_rates(probability, value, slope):
    """Values +-(P - .5) / .1 = 5, 3, 0, -2 against 1 and -1: both sides are as far off."""
    soft = Pairs(
        chosen=PAIR.chosen,
        rejected=PAIR.rejected,
        probability=torch.tensor([probability], dtype=torch.float64),
    )
    check_pair(SPPO(beta=0.1), value=value, slopes=(slope, -slope), rewards=(0.1, -0.1), signal=soft)


def test_a_rejected_completion_below_one_half_is_pulled_down_and_no_further():
    """P = .75: 1 - P = .25, so h(rejected) rests at -.25 / .1 = -2.5."""
    soft = Pairs(
        chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.75], dtype=torch.float64)
    )
    check_pair(
        SPPO(beta=0.1), ref=(-12.5, -11.5), value=0.0, slopes=(0.0, 0.0), rewards=(0.25, -0.25), signal=soft
    )
