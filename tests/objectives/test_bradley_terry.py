"""Bradley-Terry: a scalar head's value after the last token of each completion."""

import math

import pytest
import torch

from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.contracts.steps import assemble, random_step
from preftune.objectives.dpo import DPO
from preftune.types import Pairs, TokenScores
from tests.objectives.golden import PAIR, log_sigma, sigma

# values 0.2, 9, 1.5 of the chosen completion and -8, 0.5 of the rejected one: rewards 1.5 and 0.5
VALUES = (0.2, 9.0, 1.5, -8.0, 0.5)


def head(values=VALUES, lengths=(3, 2)) -> TokenScores:
    value = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return TokenScores(logp=torch.full_like(value, -1.0), value_after=value, lengths=torch.tensor(lengths))


def slopes(losses, scores) -> list[float]:
    return torch.autograd.grad(losses.per_unit.sum(), scores.value_after)[0].tolist()


@pytest.mark.parametrize(
    ("objective", "value", "chosen", "rejected"),
    [
        # log(1 + e^-1) = .313262; slope -sigma(-1)
        (BradleyTerry(centring=0.0), 0.313262, -sigma(-1.0), sigma(-1.0)),
        # + .01 * (1.5 + .5)^2 = .04, whose slope is 2 * .01 * 2 on both
        (BradleyTerry(), 0.353262, -sigma(-1.0) + 0.04, sigma(-1.0) + 0.04),
        # log(1 + e^-.25) = .576090 with a margin of .75, + .5 * 4
        (BradleyTerry(margin=0.75, centring=0.5), 2.575940, -sigma(-0.25) + 2.0, sigma(-0.25) + 2.0),
    ],
)
def test_golden(objective, value, chosen, rejected):
    scores = head()
    losses = objective(scores, PAIR)
    assert losses.per_unit.tolist() == pytest.approx([value], abs=6e-7)
    assert losses.weight.tolist() == [1.0]
    assert slopes(losses, scores) == pytest.approx([0, 0, chosen, 0, rejected], rel=1e-9)


def test_a_soft_label_is_the_mean_of_both_outcomes():
    """p = .7: with either outcome the better completion should win by the margin."""
    scores, pair = (
        head(),
        Pairs(
            chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.7], dtype=torch.float64)
        ),
    )
    losses = BradleyTerry(margin=0.25, centring=0.0)(scores, pair)
    assert losses.per_unit.tolist() == pytest.approx(
        [-0.7 * log_sigma(0.75) - 0.3 * log_sigma(-1.25)], rel=1e-6
    )
    slope = -0.7 * sigma(-0.75) + 0.3 * sigma(1.25)
    assert slopes(losses, scores) == pytest.approx([0, 0, slope, 0, -slope], rel=1e-6)


def test_a_soft_label_of_one_is_no_soft_label():
    sure = Pairs(chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.ones(1))
    objective = BradleyTerry(margin=0.5)
    assert objective(head(), sure).per_unit.item() == pytest.approx(
        objective(head(), PAIR).per_unit.item(), rel=1e-12
    )


def test_rewards_that_differ_by_the_log_odds_are_the_optimum():
    """sigma(r_w - r_l) = p, as for smoothed DPO."""
    scores = head((math.log(3.0), 0.0), lengths=(1, 1))
    pair = Pairs(chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.75]))
    assert slopes(BradleyTerry(centring=0.0)(scores, pair), scores) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_it_is_dpo_on_the_heads_value():
    """Soft labels included; the implicit reward is replaced and nothing else."""
    scores, pairs = assemble(random_step(seed=2), BradleyTerry())
    last = scores.lengths.cumsum(0) - 1
    logp = torch.zeros_like(scores.value_after)
    logp[last] = scores.value_after[last] / 0.1
    same = TokenScores(logp=logp, ref_logp=torch.zeros_like(logp), lengths=scores.lengths)
    mine = BradleyTerry(centring=0.0)(scores, pairs)
    its = DPO(beta=0.1)(same, pairs)
    torch.testing.assert_close(mine.per_unit, its.per_unit, rtol=1e-12, atol=1e-12)
    for name, values in mine.metrics.items():
        torch.testing.assert_close(values, its.metrics[name], rtol=1e-12, atol=1e-12)


def test_metrics_are_rewards_and_no_log_probabilities():
    metrics = BradleyTerry()(head(), PAIR).metrics
    assert {name: entry.tolist() for name, entry in metrics.items()} == {
        "rewards/chosen": [1.5],
        "rewards/rejected": [0.5],
        "rewards/margins": [1.0],
        "rewards/accuracies": [1.0],
    }
    tied = BradleyTerry()(head((1.0, 1.0), (1, 1)), PAIR).metrics
    assert tied["rewards/accuracies"].item() == 0.5  # a tie counts one half


def test_heads_are_averaged_over_their_losses():
    """By scalar arithmetic: two heads with rewards 1.5, 0.5 and -1, 1, and a soft label that applies to both."""
    values = torch.tensor([[0.2, 7.0], [1.5, -1.0], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=torch.full((3,), -1.0), value_after=values, lengths=torch.tensor([2, 1]))
    pair = Pairs(chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.7]))
    losses = BradleyTerry(centring=0.1, heads=2)(scores, pair)
    first = -0.7 * log_sigma(1.0) - 0.3 * log_sigma(-1.0) + 0.1 * 4
    second = -0.7 * log_sigma(-2.0) - 0.3 * log_sigma(2.0)
    assert losses.per_unit.tolist() == pytest.approx([(first + second) / 2], rel=1e-6)
    own = [-0.7 * sigma(-1.0) + 0.3 * sigma(1.0), -0.7 * sigma(2.0) + 0.3 * sigma(-2.0)]
    found = torch.autograd.grad(losses.per_unit.sum(), values)[0]
    assert found[0].tolist() == [0.0, 0.0]
    assert found[1].tolist() == pytest.approx([(own[0] + 0.4) / 2, own[1] / 2], rel=1e-6)
    assert found[2].tolist() == pytest.approx([(-own[0] + 0.4) / 2, -own[1] / 2], rel=1e-6)
    metrics = {name: entry.item() for name, entry in losses.metrics.items()}
    assert metrics["rewards/chosen"] == 0.25 and metrics["rewards/rejected"] == 0.75
    assert metrics["rewards/disagreement"] == pytest.approx(1.5)  # of the margins 1 and -2


def test_needs_no_reference():
    assert BradleyTerry().needs == {"value_after"}
