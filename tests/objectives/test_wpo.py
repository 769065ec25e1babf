"""WPO: the weight of a pair by hand, its bound, and that it is a constant for the gradient."""

import math

import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.wpo import WPO
from tests.objectives.golden import assert_same, check_pair, log_sigma, sigma


def test_weighted_pair():
    """Per token -2 + 1 = -1 and -1.75 + 1.25 = -.5: weight e^-1.5. The slope has no part of the weight's own."""
    weight = math.exp(-1.5)
    push = 0.1 * weight * sigma(-0.2)
    check_pair(
        WPO(beta=0.1),
        value=weight * 0.5981389,
        slopes=(-push, push),
        rewards=(0.1, -0.1),
        more={"log_collision": (-5.0, -10.0)},
        extra={"pair_weight": weight},
    )


def test_the_product_is_bounded_and_not_each_factor():
    """Logs of 2 and -2.5: weight e^-.5. h = (1, -25): .1 * 26 = 2.6."""
    weight = math.exp(-0.5)
    push = 0.1 * weight * sigma(-2.6)
    check_pair(
        WPO(beta=0.1),
        value=-weight * log_sigma(2.6),
        slopes=(-push, push),
        rewards=(0.1, -2.5),
        logp=(-10.0, -40.0),
        ref=(-11.0, -15.0),
        more={"log_collision": (-20.0, -20.0)},
        extra={"pair_weight": weight},
    )


def test_no_weight_is_above_1():
    """-2 + 4 = 2 and -1.75 + 2.5 = .75: the pair is likelier than a sampled one, and weighs as in DPO."""
    push = 0.1 * sigma(-0.2)
    check_pair(
        WPO(beta=0.1),
        value=0.598139,
        slopes=(-push, push),
        rewards=(0.1, -0.1),
        more={"log_collision": (-20.0, -20.0)},
        extra={"pair_weight": 1.0},
    )


def test_dpo_where_all_weights_are_1():
    assert_same(WPO(beta=0.3), DPO(beta=0.3), log_collision=torch.full((14,), -3.0, dtype=torch.float64))


def test_a_uniform_policy_weighs_1():
    """Every token is as likely as a drawn one: log(1/V) - log(V / V^2) = 0."""
    uniform = -13 * math.log(2)
    check_pair(
        WPO(beta=0.1),
        value=math.log(2),
        slopes=(-0.05, 0.05),
        rewards=(0.0, 0.0),
        lengths=(3, 3),
        logp=(3 * uniform, 3 * uniform),
        ref=(3 * uniform, 3 * uniform),
        more={"log_collision": (3 * uniform, 3 * uniform)},
        extra={"pair_weight": 1.0},
    )
