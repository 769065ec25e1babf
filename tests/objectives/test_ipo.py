"""IPO with sums and with means over tokens."""

import pytest
import torch

from preftune.objectives.ipo import IPO
from preftune.types import Pairs
from tests.objectives.golden import PAIR, check_pair, gradient, make_scores


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
    check_pair(
        IPO(tau=0.1, reduction=reduction), lengths=(1, 1), value=9.0, slopes=(-6.0, 6.0), rewards=(0.1, -0.1)
    )


@pytest.mark.parametrize(
    ("probability", "value", "slope"), [(1.0, 9.0, -6.0), (0.8, 1.0, -2.0), (0.5, 4.0, 4.0), (0.3, 16.0, 8.0)]
)
def test_soft_labels_move_the_target(probability, value, slope):
    """(P - .5) / .1 = 5, 3, 0, -2 against D = 2."""
    soft = Pairs(
        chosen=PAIR.chosen,
        rejected=PAIR.rejected,
        probability=torch.tensor([probability], dtype=torch.float64),
    )
    check_pair(
        IPO(tau=0.1, reduction="sum"), value=value, slopes=(slope, -slope), rewards=(0.1, -0.1), signal=soft
    )


def test_a_certain_pair_is_one_without_a_probability():
    objective = IPO(tau=0.3)
    certain = Pairs(chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.ones(1))
    scores = make_scores(objective, (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    assert gradient(objective(scores, certain), scores) == gradient(objective(scores, PAIR), scores)


def test_online_on_all_pairs_of_a_bandit_the_optimum_is_that_of_ipo():
    """With every ordered pair of three arms from a uniform policy and P from the judge, the loss rests at
    ref * exp(win rate / tau)."""
    wins = torch.tensor(
        [[0.5, 0.9, 0.4], [0.1, 0.5, 0.7], [0.6, 0.3, 0.5]], dtype=torch.float64
    )  # not transitive
    ref, tau = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log(), 0.4
    first, second = (
        index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    )
    objective = IPO(tau=tau, reduction="sum")
    scores = make_scores(
        objective, (ref + wins.mean(1) / tau).log_softmax(0).tolist(), ref.tolist(), (1, 1, 1)
    )
    slopes = gradient(
        objective(scores, Pairs(chosen=first, rejected=second, probability=wins.flatten())), scores
    )
    assert slopes == pytest.approx([0.0] * 3, abs=1e-12)
