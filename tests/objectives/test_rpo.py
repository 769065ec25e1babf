"""RPO: DPO plus likelihood, with every factor in its weight."""

from preftune.objectives.dpo import DPO
from preftune.objectives.rpo import RPO
from tests.objectives.golden import assert_same, check_pair, log_sigma, sigma


def test_default_is_the_mean():
    """beta D = 1: log(1 + e^-1) + .2 * 2."""
    push = 0.5 * sigma(-1)
    check_pair(
        RPO(), value=-log_sigma(1) + 0.4, slopes=(-push - 0.04, push), rewards=(0.5, -0.5), extra={"nll": 2.0}
    )


def test_sum():
    """.598139 + .5 * 10."""
    push = 0.1 * sigma(-0.2)
    check_pair(
        RPO(beta=0.1, nll_weight=0.5, nll_scale="sum"),
        value=5.598139,
        slopes=(-push - 0.5, push),
        rewards=(0.1, -0.1),
        extra={"nll": 10.0},
    )


def test_without_likelihood_it_is_dpo():
    assert_same(RPO(beta=0.3, nll_weight=0.0), DPO(beta=0.3))
