"""GDPO and GIPO: a soft label shrinks the margin."""

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.gdpo import GDPO
from preftune.objectives.ipo import IPO
from preftune.types import Pairs
from tests.objectives.golden import PAIR, assert_same, check_pair, gradient, make_scores, random_scores, sigma


def soft(*probabilities: float) -> Pairs:
    return Pairs(
        chosen=PAIR.chosen,
        rejected=PAIR.rejected,
        probability=torch.tensor(probabilities, dtype=torch.float64),
    )


def test_golden():
    """beta (2p - 1) D = .1 * .8 * 2 = .16: log(1 + e^-.16) = .616344."""
    slope = -0.08 * sigma(-0.16)
    check_pair(GDPO(beta=0.1, soft_label=0.9), value=0.616344, slopes=(slope, -slope), rewards=(0.1, -0.1))


def test_a_sure_label_is_dpo():
    assert_same(GDPO(beta=0.3, soft_label=1.0), DPO(beta=0.3))


def test_it_is_dpo_with_a_smaller_beta():
    assert_same(GDPO(beta=0.3, soft_label=0.75), DPO(beta=0.15))


def test_square():
    """GIPO: (2p - 1) D - 1 / (2 beta) = .8 * 2 - 2.5 = -.9; slope 2 * -.9 * .8."""
    objective = GDPO(beta=0.2, soft_label=0.9, link="square")
    check_pair(objective, value=0.81, slopes=(-1.44, 1.44), rewards=(0.2, -0.2))


def test_square_of_a_sure_label_is_ipo_with_sums():
    assert_same(GDPO(beta=0.3, soft_label=1.0, link="square"), IPO(tau=0.3, reduction="sum"))


@pytest.mark.parametrize("link", ["logistic", "square"])
def test_the_label_of_a_pair_wins_over_the_setting(link):
    """And at p = .75 it is what the setting would have been."""
    by_pair, by_setting = GDPO(soft_label=0.9, link=link), GDPO(soft_label=0.75, link=link)
    results = []
    for objective, signal in ((by_pair, soft(0.75)), (by_setting, PAIR)):
        scores = make_scores(objective, (-10.0, -14.0), (-11.0, -13.0), (5, 8))
        losses = objective(scores, signal)
        results.append([losses.per_unit.item(), *gradient(losses, scores)])
    assert results[0] == pytest.approx(results[1], rel=1e-12)


@pytest.mark.parametrize("link", ["logistic", "square"])
def test_each_pair_has_its_own_label(link):
    """p = 1/2 has no gradient, and p = .2 is the other completion preferred with .8."""
    scores, pairs = random_scores()
    objective = GDPO(beta=0.3, link=link)
    chances = torch.tensor([0.5, 0.2])
    losses = objective(scores, Pairs(chosen=pairs.chosen, rejected=pairs.rejected, probability=chances))
    slopes = gradient(losses, scores)
    assert slopes[:8] == [0.0] * 8  # completions 0 and 1, of 3 and 5 tokens, are the first pair
    turned = Pairs(chosen=pairs.rejected, rejected=pairs.chosen, probability=1 - chances)
    assert gradient(objective(scores, turned), scores) == pytest.approx(slopes, rel=1e-6)
    assert max(map(abs, slopes[8:])) > 1e-3
