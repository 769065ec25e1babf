"""RWR: completions of 1, 2 and 3 tokens with rewards 0, ln 3 and 9."""

import math

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.types import Labels, Rewards, TokenScores

LOGP = [-1.0, -7.0, -9.0, -2.0, -3.0, -4.0]
REWARDS = Rewards(
    reward=torch.tensor([0.0, math.log(3), 9.0], dtype=torch.float64), group=torch.tensor([0, 0, 0])
)


def run(objective, signal) -> tuple[float, list[float], dict]:
    leaf = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=leaf, lengths=torch.tensor([1, 2, 3]))
    losses = objective(scores, signal)
    loss = reduce_losses(losses, float(objective.weights(scores.lengths, signal).sum()))
    return loss.item(), torch.autograd.grad(loss, leaf)[0].tolist(), dict(losses.metrics)


def test_every_token_weighs_its_reward():
    """Weights 1, 3 and 20 (e^9 is cut): (1 * 1 + 3 * 16 + 20 * 9) / 6."""
    loss, slopes, metrics = run(RWR(), REWARDS)
    assert loss == pytest.approx((1 + 48 + 180) / 6)
    assert slopes == pytest.approx([-1 / 6, -3 / 6, -3 / 6, -20 / 6, -20 / 6, -20 / 6])
    assert metrics["rwr/weight"].tolist() == pytest.approx([1.0, 3.0, 20.0])


def test_every_completion_weighs_its_reward():
    """(1 * 1 + 3 * 8 + 20 * 3) / 3."""
    loss, slopes, _ = run(RWR(reduction="sequence_mean"), REWARDS)
    assert loss == pytest.approx(85 / 3)
    assert slopes == pytest.approx([-1 / 3, -1 / 2, -1 / 2, -20 / 9, -20 / 9, -20 / 9])


def test_temperature():
    """T = 2: e^(ln 3 / 2) = sqrt 3 and e^4.5 = 90.02, cut only above 100."""
    _, _, metrics = run(RWR(temperature=2.0, max_weight=100.0), REWARDS)
    assert metrics["rwr/weight"].tolist() == pytest.approx([1.0, math.sqrt(3), math.exp(4.5)])


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_equal_rewards_are_sft_on_everything(reduction):
    level = Rewards(reward=torch.zeros(3).double(), group=torch.tensor([0, 0, 0]))
    mine = run(RWR(reduction=reduction), level)
    sft = run(SFT(reduction=reduction), Labels(label=torch.tensor([1, 1, 1])))
    assert mine[0] == pytest.approx(sft[0])
    assert mine[1] == pytest.approx(sft[1])


def test_metrics():
    """Rewards differ in all three pairs: the better one of each is the second, the third and the third."""
    _, _, metrics = run(RWR(), REWARDS)
    assert sorted(metrics["logps/chosen"].tolist()) == [-16.0, -9.0, -9.0]
    assert sorted(metrics["rewards/margins"].tolist()) == [-15.0, -8.0, 7.0]
