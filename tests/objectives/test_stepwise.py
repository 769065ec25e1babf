"""Stepwise: the head's value at the end of a beginning, against its target."""

import math

import pytest
import torch

from preftune.objectives.stepwise import Stepwise
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import log_sigma, sigma

# beginnings of 3, 1 and 2 tokens: values 1.5, -0.5 and 0.25 at their ends
VALUES = (0.2, 9.0, 1.5, -0.5, -8.0, 0.25)
TARGETS = (1.0, 0.0, 0.75)


def scores() -> TokenScores:
    value = torch.tensor(VALUES, dtype=torch.float64, requires_grad=True)
    return TokenScores(logp=torch.full_like(value, -1.0), value_after=value, lengths=torch.tensor([3, 1, 2]))


def signal() -> Rewards:
    return Rewards(reward=torch.tensor(TARGETS, dtype=torch.float64), group=torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("loss", "values", "slopes"),
    [
        (
            "logistic",
            [-log_sigma(1.5), -log_sigma(0.5), -0.75 * log_sigma(0.25) - 0.25 * log_sigma(-0.25)],
            [sigma(1.5) - 1, sigma(-0.5), sigma(0.25) - 0.75],
        ),
        ("squared", [0.25, 0.25, 0.25], [1.0, -1.0, -1.0]),
    ],
)
def test_golden(loss, values, slopes):
    given = scores()
    losses = Stepwise(loss=loss)(given, signal())
    assert losses.per_unit.tolist() == pytest.approx(values, rel=1e-9)
    assert losses.weight.tolist() == [1.0, 1.0, 1.0]
    (slope,) = torch.autograd.grad(losses.per_unit.sum(), given.value_after)
    assert slope.tolist() == pytest.approx([0, 0, slopes[0], slopes[1], 0, slopes[2]], rel=1e-9)


def test_metrics():
    losses = Stepwise()(scores(), signal())
    assert losses.metrics["steps/values"].tolist() == [1.5, -0.5, 0.25]
    assert losses.metrics["steps/accuracies"].tolist() == [1.0, 1.0, 1.0]
    squared = Stepwise(loss="squared")(scores(), signal())
    assert squared.metrics["steps/accuracies"].tolist() == [1.0, 1.0, 0.0]  # 0.25 for a target of 0.75


def test_a_head_of_zeros_loses_ln_2_whatever_the_target():
    given = TokenScores(
        logp=torch.zeros(3),
        value_after=torch.zeros(3, dtype=torch.float64),
        lengths=torch.ones(3, dtype=torch.long),
    )
    assert Stepwise()(given, signal()).per_unit.tolist() == pytest.approx([math.log(2)] * 3)
