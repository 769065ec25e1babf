"""IPO with sums and with means over tokens."""

import pytest

from preftune.objectives.ipo import IPO
from tests.objectives.golden import check_pair


def test_golden_sum():
    """(2 - 5)^2 = 9, slope 2 * -3."""
    check_pair(IPO(tau=0.1, reduction="sum"), value=9.0, slopes=(-6.0, 6.0), rewards=(0.1, -0.1))


def test_golden_mean():
    """(.2 + .125 - 5)^2 = 4.675^2, slope 2 * -4.675 over each completion's own length."""
    check_pair(IPO(tau=0.1), value=21.855625, slopes=(-9.35 / 5, 9.35 / 8), rewards=(0.02, -0.0125))


def test_a_margin_past_the_target_is_pulled_back():
    """tau = .5: target 1, D = 2, slope 2 * 1."""
    check_pair(IPO(tau=0.5, reduction="sum"), value=1.0, slopes=(2.0, -2.0), rewards=(0.5, -0.5))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions_agree_on_single_tokens(reduction):
    check_pair(IPO(tau=0.1, reduction=reduction), lengths=(1, 1), value=9.0, slopes=(-6.0, 6.0), rewards=(0.1, -0.1))
