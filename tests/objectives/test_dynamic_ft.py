"""Dynamic fine-tuning: tokens of probability 1/2 and 1/4 of a preferred completion, 1/8 of a dispreferred
one.
"""

import math

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.dynamic_ft import DynamicFT
from preftune.types import Labels, TokenScores

LABELS = Labels(label=torch.tensor([1, -1, 0, 1]))
LENGTHS = torch.tensor([2, 1, 1, 1])
PROBABILITIES = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1.0]


def test_golden():
    """The mean over three tokens of p ln(1/p): (ln 2 / 2 + ln 4 / 4 + 0) / 3; its gradient is that of -p."""
    leaf = torch.tensor([math.log(p) for p in PROBABILITIES], dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=leaf, lengths=LENGTHS)
    losses = DynamicFT()(scores, LABELS)
    assert losses.weight.tolist() == [1, 1, 0, 0, 1] == DynamicFT().weights(LENGTHS, LABELS).tolist()
    loss = reduce_losses(losses, 3.0)
    (slopes,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx(math.log(2) / 3)
    assert slopes.tolist() == pytest.approx([-1 / 6, -1 / 12, 0, 0, -1 / 3])
    assert {name: value.tolist() for name, value in losses.metrics.items()} == {
        "dynamic_ft/probability": pytest.approx([1 / 2, 1 / 4, 1.0]),
        "logps/chosen": pytest.approx([math.log(1 / 8), 0.0]),
        "logps/rejected": pytest.approx([math.log(1 / 8)]),
    }
    torch.testing.assert_close(slopes, torch.autograd.grad(-(leaf.exp() * losses.weight).sum() / 3, leaf)[0])
