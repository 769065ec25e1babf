"""SimPO, CPO-SimPO and AlphaPO: log-probabilities per token -2 and -1.75, no reference."""

import math

import pytest

from preftune.objectives.simpo import AlphaPO, CPOSimPO, SimPO
from tests.objectives.golden import PAIR, assert_same, check_pair, gradient, make_scores, sigma


def test_simpo():
    """2 * (-2 + 1.75) - 1 = -1.5: log(1 + e^1.5) = 1.701413."""
    push = 2 * sigma(1.5)
    check_pair(SimPO(beta=2.0, gamma=1.0), value=1.701413, slopes=(-push / 5, push / 8), rewards=(-4.0, -3.5))


@pytest.mark.parametrize(("scale", "nll", "slope"), [("mean", 2.0, 0.2), ("sum", 10.0, 1.0)])
def test_cpo_simpo(scale, nll, slope):
    """1.701413 as for SimPO, plus .5 times the likelihood: 10 nats, or 2 per token."""
    push = 2 * sigma(1.5)
    check_pair(
        CPOSimPO(beta=2.0, gamma=1.0, nll_weight=0.5, nll_scale=scale),
        value=1.701413 + 0.5 * nll,
        slopes=(-push / 5 - 0.5 * slope, push / 8),
        rewards=(-4.0, -3.5),
        extra={"nll": nll},
    )


def test_cpo_simpo_without_likelihood_is_simpo():
    assert_same(CPOSimPO(beta=1.5, gamma=0.3, nll_weight=0.0), SimPO(beta=1.5, gamma=0.3))


def test_alphapo():
    """r = 10 (1 - e^{-lpbar / 4}): slope beta e^{-alpha lpbar} over the length."""
    chosen, rejected = 10 * (1 - math.exp(0.5)), 10 * (1 - math.exp(0.4375))
    push = 2.5 * sigma(-(chosen - rejected - 0.1))
    check_pair(
        AlphaPO(),
        value=1.386517,
        slopes=(-push * math.exp(0.5) / 5, push * math.exp(0.4375) / 8),
        rewards=(chosen, rejected),
    )


@pytest.mark.parametrize("alpha", [0.0, 1e-11, -1e-11])
def test_alphapo_tends_to_simpo(alpha):
    assert_same(AlphaPO(beta=1.5, gamma=0.3, alpha=alpha), SimPO(beta=1.5, gamma=0.3))


def test_sign_of_alpha():
    """alpha > 0 pushes an unlikely completion more than a likely one, alpha < 0 less: e^{-alpha lpbar}."""
    for alpha in (0.5, -0.5):
        objective = AlphaPO(alpha=alpha)
        scores = make_scores(objective, (-4.0, -1.0), (), (1, 1))
        chosen, rejected = gradient(objective(scores, PAIR), scores)
        assert -chosen / rejected == pytest.approx(math.exp(alpha * 3), rel=1e-9)


def test_exponents_are_bounded_at_80():
    """alpha = 1: a mean log-probability of -79 is pushed by beta e^79, one of -81 no longer."""
    objective = AlphaPO(beta=1.0, gamma=0.0, alpha=1.0)
    for logp, expected in ((-79.0, -math.exp(79)), (-81.0, 0.0)):
        scores = make_scores(objective, (logp, -1.0), (), (1, 1))
        assert gradient(objective(scores, PAIR), scores)[0] == pytest.approx(expected, rel=1e-9)
