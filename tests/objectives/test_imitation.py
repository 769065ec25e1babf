"""DIL (log-ratios per token .2 and -.125) and GSIL (f = .5 h + .25 = .75 and -.25) in each of their links."""

import math

import pytest

from preftune.objectives.imitation import DIL, GSIL
from tests.objectives.golden import PAIR, check_pair, gradient, log_sigma, make_scores, sigma

exp = math.exp


@pytest.mark.parametrize(
    ("link", "value", "slopes"),
    [
        ("lsif", -exp(0.2) + exp(-0.25) / 2, (-exp(0.2) / 5, exp(-0.25) / 8)),
        ("ukl", 2 + exp(-0.125), (-1 / 5, exp(-0.125) / 8)),
        ("bce", -log_sigma(0.2) - log_sigma(0.125), (-sigma(-0.2) / 5, sigma(-0.125) / 8)),
    ],
)
def test_dil(link, value, slopes):
    check_pair(DIL(link=link), value=value, slopes=slopes, rewards=(0.2, -0.125))


@pytest.mark.parametrize(
    ("link", "value", "chosen", "rejected"),
    [
        ("bernoulli", -log_sigma(0.75) - log_sigma(0.25), -sigma(-0.75), sigma(-0.25)),
        # d/da sigma(-a)^2 = -2 sigma(-a)^2 sigma(a); d/db sigma(b)^2 = 2 sigma(b)^2 sigma(-b)
        (
            "brier",
            sigma(-0.75) ** 2 + sigma(-0.25) ** 2,
            -2 * sigma(-0.75) ** 2 * sigma(0.75),
            2 * sigma(-0.25) ** 2 * sigma(0.25),
        ),
        ("hinge", 0.25 + 0.75, -1, 1),
        ("kliep", -0.75 + exp(-0.25), -1, exp(-0.25)),
        ("lsif", -exp(0.75) + exp(-0.5) / 2, -exp(0.75), exp(-0.5)),
    ],
)
def test_gsil(link, value, chosen, rejected):
    check_pair(
        GSIL(beta=0.5, offset=0.25, link=link),
        value=value,
        slopes=(0.5 * chosen, 0.5 * rejected),
        rewards=(0.5, -0.5),
    )


def test_gsil_hinge_rests_beyond_its_margins():
    """f = 1.5 and -1.5 with beta 1.5 and no offset."""
    check_pair(GSIL(beta=1.5, offset=0.0, link="hinge"), value=0.0, slopes=(0.0, 0.0), rewards=(1.5, -1.5))


@pytest.mark.parametrize(("link", "bound"), [("kliep", 80.0), ("lsif", 40.0)])
def test_exponents_are_bounded(link, bound):
    """kliep has e^b and lsif e^(2b) / 2, both with slope e^(..) up to an exponent of 80."""
    objective = GSIL(beta=1.0, offset=0.0, link=link)
    for excess in (-0.5, 0.5):
        scores = make_scores(objective, (-2.0, bound + excess), (0.0, 0.0), (1, 1))
        expected = math.exp((bound + excess) * (2 if link == "lsif" else 1)) if excess < 0 else 0.0
        assert gradient(objective(scores, PAIR), scores)[1] == pytest.approx(expected, rel=1e-9)
