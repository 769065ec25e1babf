"""SFT: three completions of 1, 2 and 3 tokens, the second dispreferred."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.sft import SFT
from preftune.types import Labels, TokenScores

LOGP = [-1.0, -7.0, -9.0, -2.0, -3.0, -4.0]
LABELS = Labels(label=torch.tensor([1, -1, 1]))


def loss_and_gradient(objective: SFT) -> tuple[float, list[float]]:
    leaf = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=leaf, lengths=torch.tensor([1, 2, 3]))
    total = float(objective.weights(scores.lengths, LABELS).sum())
    loss = reduce_losses(objective(scores, LABELS), total)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient.tolist()


def test_every_token_weighs_the_same():
    """(1 + 2 + 3 + 4) / 4 preferred tokens."""
    loss, gradient = loss_and_gradient(SFT())
    assert loss == pytest.approx(2.5)
    assert gradient == pytest.approx([-0.25, 0, 0, -0.25, -0.25, -0.25])


def test_every_completion_weighs_the_same():
    """(1 + (2 + 3 + 4) / 3) / 2 preferred completions."""
    loss, gradient = loss_and_gradient(SFT(reduction="sequence_mean"))
    assert loss == pytest.approx(2.0)
    assert gradient == pytest.approx([-0.5, 0, 0, -1 / 6, -1 / 6, -1 / 6])


def test_a_dispreferred_completion_of_probability_zero_does_no_harm():
    leaf = torch.tensor([-1.0, -torch.inf], requires_grad=True)
    scores = TokenScores(logp=leaf, lengths=torch.tensor([1, 1]))
    loss = reduce_losses(SFT()(scores, Labels(label=torch.tensor([1, -1]))), 1.0)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == 1.0
    assert gradient.tolist() == [-1.0, 0.0]


def test_a_completion_without_a_label_weighs_nothing():
    labels = Labels(label=torch.tensor([1, 0, -1]))
    assert SFT().weights(torch.tensor([1, 2, 3]), labels).tolist() == [1, 0, 0, 0, 0, 0]
    assert SFT(reduction="sequence_mean").weights(torch.tensor([1, 2, 3]), labels).tolist() == [1, 0, 0]
