"""BCO on pairs: two classifications."""

from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.imitation import GSIL
from tests.objectives.golden import assert_same, check_pair, log_sigma, sigma


def test_golden():
    """-log sigma(.1) - log sigma(.1) = 1.288793."""
    slope = -0.1 * sigma(-0.1)
    check_pair(BCOPair(beta=0.1), value=1.288793, slopes=(slope, -slope), rewards=(0.1, -0.1))


def test_the_sides_are_apart():
    """Implicit rewards .1 and .3: -log sigma(.1) - log sigma(-.3)."""
    check_pair(
        BCOPair(beta=0.1),
        ref=(-11.0, -17.0),
        value=-log_sigma(0.1) - log_sigma(-0.3),
        slopes=(-0.1 * sigma(-0.1), 0.1 * sigma(0.3)),
        rewards=(0.1, 0.3),
    )


def test_it_is_gsil_without_its_offset():
    assert_same(BCOPair(beta=0.3), GSIL(beta=0.3, offset=0.0))
