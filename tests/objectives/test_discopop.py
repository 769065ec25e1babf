"""DiscoPOP: logistic blending into exponential."""

import math

import pytest

from preftune.objectives.discopop import DiscoPOP
from tests.objectives.golden import PAIR, check_pair, gradient, log_sigma, make_scores, sigma


def slope_of(rho: float, tau: float) -> float:
    """dL / drho, g carrying gradient: g' (exp(-rho) + log sigma(rho)) - (1 - g) sigma(-rho) - g exp(-rho)."""
    g = sigma(rho / tau)
    bend = g * (1 - g) / tau
    return bend * (math.exp(-rho) + log_sigma(rho)) - (1 - g) * sigma(-rho) - g * math.exp(-rho)


def test_golden():
    slope = 0.1 * slope_of(0.2, 0.05)
    check_pair(DiscoPOP(beta=0.1, tau=0.05), value=0.814763, slopes=(slope, -slope), rewards=(0.1, -0.1))


def test_wider_blend():
    rho, tau = 1.0, 0.5
    value = sigma(-2) * -log_sigma(rho) + sigma(2) * math.exp(-rho)
    slope = 0.5 * slope_of(rho, tau)
    check_pair(DiscoPOP(beta=0.5, tau=tau), value=value, slopes=(slope, -slope), rewards=(0.5, -0.5))


def test_it_rises_for_a_while_near_zero():
    """At rho = 0: (1 - ln 2) / (4 tau) - 1/4 - 1/2 = .7843 with tau = .05."""
    objective = DiscoPOP(beta=1.0)
    scores = make_scores(objective, (-10.0, -14.0), (-10.0, -14.0), (1, 1))
    assert gradient(objective(scores, PAIR), scores)[0] == pytest.approx(
        (1 - math.log(2)) / 0.2 - 0.75, rel=1e-9
    )


def test_a_wrongly_ordered_pair_is_logistic():
    """rho = -1000: sigma(rho / tau) is 0 and exp(-rho) infinite; their product is 0."""
    objective = DiscoPOP(beta=1.0)
    scores = make_scores(objective, (-1000.0, 0.0), (0.0, 0.0), (1, 1))
    losses = objective(scores, PAIR)
    assert losses.per_unit.item() == pytest.approx(1000.0)
    assert gradient(losses, scores) == pytest.approx([-1.0, 1.0])
