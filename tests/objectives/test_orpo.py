"""ORPO: likelihood 10 / 5 and the log odds ratio of e^-2 and e^-1.75."""

import math

import pytest

from preftune.objectives.orpo import ORPO
from tests.objectives.golden import PAIR, check_pair, gradient, log_sigma, make_scores, sigma


def odds(x: float) -> float:
    return x - math.log(1 - math.exp(x))


def test_golden():
    """Ratio part .851757; d lo / d lpbar = 1 / (1 - e^lpbar)."""
    margin = odds(-2.0) - odds(-1.75)
    assert -log_sigma(margin) == pytest.approx(0.851757, abs=6e-7)
    push = 0.1 * sigma(-margin)
    slopes = (-1 / 5 - push / (1 - math.exp(-2)) / 5, push / (1 - math.exp(-1.75)) / 8)
    check_pair(
        ORPO(), value=2 + 0.0851757, slopes=slopes, rewards=(odds(-2.0), odds(-1.75)), extra={"nll": 2.0}
    )


def test_likely_completions_are_exact():
    """lpbar = -1e-4: odds 1 / (e^1e-4 - 1), in the branch of the logarithm near 0."""
    expected = -math.log(math.expm1(1e-4))
    scores = make_scores(ORPO(), (-1e-4, -2.0), (), (1, 1))
    losses = ORPO()(scores, PAIR)
    assert losses.metrics["rewards/chosen"].item() == pytest.approx(expected, rel=1e-12)
    push = 0.1 * sigma(-(expected - odds(-2.0)))
    assert gradient(losses, scores)[0] == pytest.approx(-1 - push / -math.expm1(-1e-4), rel=1e-9)


def test_a_certain_completion_has_bounded_odds():
    """p = 1 counts as 1 - 1e-7: log odds 16.118, and no slope through them."""
    scores = make_scores(ORPO(), (0.0, -1.0), (), (1, 1))
    losses = ORPO()(scores, PAIR)
    assert losses.metrics["rewards/chosen"].item() == pytest.approx(-math.log(math.expm1(1e-7)), rel=1e-9)
    assert gradient(losses, scores)[0] == -1.0
