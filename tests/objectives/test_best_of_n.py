"""Best-of-N: completions of one token but the best, and their likelihoods."""

import math

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.best_of_n import BestOfN
from preftune.objectives.sft import SFT
from preftune.types import Labels, Rewards, TokenScores
from tests.objectives.samples import numbers

# Group 5: the best has two tokens of -1 and -2; the others -2, -3.5 and -9. Group 3: one completion.
LOGP = (-1.0, -2.0, -2.0, -4.0, -3.5, -9.0)
LENGTHS = torch.tensor([2, 1, 1, 1, 1])
SIGNAL = Rewards(reward=numbers([2.0, 0.0, 7.0, 1.0, 0.0]), group=torch.tensor([5, 5, 3, 5, 5]))


def run(objective, signal=SIGNAL) -> tuple[list[float], list[float], dict]:
    """Units in the order of the group ids, and the slopes of their sum."""
    logp = numbers(LOGP).requires_grad_()
    losses = objective(TokenScores(logp=logp, lengths=LENGTHS), signal)
    assert losses.weight.tolist() == [1.0] * len(losses.per_unit)
    slopes = torch.autograd.grad(losses.per_unit.sum(), logp)[0].tolist()
    return losses.per_unit.tolist(), slopes, {name: value.tolist() for name, value in losses.metrics.items()}


def test_all_others_are_pushed_but_those_far_below():
    """l = -1.5 of the best, -2, -3.5, -9; the last is 7.5 nats behind, more than ln 100 = 4.6."""
    units, slopes, metrics = run(BestOfN())
    assert units == pytest.approx([4.0, 1.5 + 0.05 * (-2 - 3.5)])
    assert slopes == pytest.approx([-0.5, -0.5, 0.05, -1.0, 0.05, 0.0])
    assert metrics["nll"] == [4.0, 1.5]
    assert metrics["negatives/pushed"] == [1.0, 1.0, 0.0]


def test_the_mean_of_the_others():
    units, slopes, _ = run(BestOfN(negative_weight=0.3, negatives="mean"))
    assert units == pytest.approx([4.0, 1.5 + 0.3 * (-2 - 3.5) / 3])
    assert slopes == pytest.approx([-0.5, -0.5, 0.1, -1.0, 0.1, 0.0])


def test_the_worst_alone():
    """Two share the worst reward; of these one is let go."""
    units, slopes, metrics = run(BestOfN(negative_weight=0.3, negatives="worst"))
    assert units == pytest.approx([4.0, 1.5 + 0.3 * (-2) / 2])
    assert slopes == pytest.approx([-0.5, -0.5, 0.15, -1.0, 0.0, 0.0])
    assert metrics["negatives/pushed"] == [1.0, 0.0]
    raised = Rewards(reward=SIGNAL.reward + 3.0, group=SIGNAL.group)  # the worst is not at 0
    assert run(BestOfN(negative_weight=0.3, negatives="worst"), raised)[:2] == (units, slopes)


def test_sums_over_tokens():
    """l(best) = -3: -2 is ahead of it, -9 is 6 nats behind."""
    units, slopes, metrics = run(BestOfN(negative_weight=0.3, nll_scale="sum"))
    assert units == pytest.approx([4.0, 3 + 0.3 * (-2 - 3.5)])
    assert slopes == pytest.approx([-1.0, -1.0, 0.3, -1.0, 0.3, 0.0])
    assert metrics["rewards/chosen"].count(-3.0) == 3


def test_without_a_bound_all_are_pushed():
    units, slopes, _ = run(BestOfN(min_ratio=0.0))
    assert units == pytest.approx([4.0, 1.5 + 0.05 * (-2 - 3.5 - 9)])
    assert slopes[-1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("min_ratio", "pushed"), [(math.exp(-2.0) - 1e-9, 1.0), (math.exp(-2.0) + 1e-9, 0.0)]
)
def test_the_bound(min_ratio, pushed):
    """-3.5 is 2 nats behind -1.5."""
    assert run(BestOfN(min_ratio=min_ratio))[2]["negatives/pushed"] == [1.0, pushed, 0.0]


def test_equal_rewards_share_the_best_and_leave_no_others():
    level = Rewards(reward=numbers([1.0] * 5), group=torch.tensor([0] * 5))
    for negatives in ("sum", "mean", "worst"):
        units, slopes, metrics = run(BestOfN(negative_weight=1.0, negatives=negatives), level)
        assert units == pytest.approx([(1.5 + 2 + 4 + 3.5 + 9) / 5])
        assert slopes == pytest.approx([-0.1, -0.1, -0.2, -0.2, -0.2, -0.2])
        assert metrics["negatives/pushed"] == []


def test_without_negatives_it_is_sft_on_the_best():
    units, slopes, _ = run(BestOfN(negative_weight=0.0))
    leaf = numbers(LOGP).requires_grad_()
    losses = SFT(reduction="sequence_mean")(
        TokenScores(logp=leaf, lengths=LENGTHS), Labels(label=torch.tensor([1, -1, 1, -1, -1]))
    )
    total = reduce_losses(losses, 1.0)
    assert sum(units) == pytest.approx(total.item())
    assert slopes == pytest.approx(torch.autograd.grad(total, leaf)[0].tolist())
