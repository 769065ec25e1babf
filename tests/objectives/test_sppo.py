"""SPPO with hard win rates: log-ratios 1 and -1 against +-1 / (2 beta)."""

from preftune.objectives.sppo import SPPO
from tests.objectives.golden import check_pair


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
