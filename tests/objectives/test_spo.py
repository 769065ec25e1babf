"""SPO: win rates within a group, and the leave-one-out policy gradient on them."""

import pytest
import torch

from preftune.objectives.base import plain_metric
from preftune.objectives.nash_md import NashMD
from preftune.objectives.spo import SPO, win_rates
from preftune.types import Rewards
from tests.objectives.golden import gradient, make_scores, sigma

GROUPS = Rewards(
    reward=torch.tensor([2.0, 7.0, 1.0, 2.0, 0.5, 0.5], dtype=torch.float64),
    group=torch.tensor([3, 1, 3, 3, 4, 4]),
)
LOGP, LENGTHS = (-1.0, -2.0, -3.0, -4.0, -5.0, -6.0), (1, 2, 1, 2, 1, 3)


def test_win_rates_by_order():
    """Group 3 holds 2, 1, 2: one win and one tie, two losses; group 1 is alone; group 4 ties."""
    rate, size = win_rates(GROUPS, "sign", torch.float64)
    assert rate.tolist() == [0.75, 0.5, 0.0, 0.75, 0.5, 0.5]
    assert size.tolist() == [3, 1, 3, 3, 2, 2]


def test_win_rates_by_log_odds():
    rate, _ = win_rates(GROUPS, "sigmoid", torch.float64)
    high, low = (sigma(1.0) + 0.5) / 2, sigma(-1.0)
    assert rate.tolist() == pytest.approx([high, 0.5, low, high, 0.5, 0.5])


def losses(objective=None):
    objective = objective or SPO(win="sign")
    scores = make_scores(objective, LOGP, LOGP, LENGTHS)
    return objective(scores, GROUPS), scores


def test_golden():
    """A = 1.5 * (.25, -.5, .25) = .375, -.75, .375: each win rate less the mean of the other two."""
    found, scores = losses()
    assert found.per_unit.tolist() == pytest.approx([0.375, 0.0, -2.25, 1.5, 0.0, 0.0])
    assert gradient(found, scores) == pytest.approx([-0.375, 0, 0, 0.75, -0.375, -0.375, 0, 0, 0, 0])
    assert found.metrics["advantage"].tolist() == pytest.approx([0.375, -0.75, 0.375, 0.0, 0.0])
    assert found.metrics["win_rate"].tolist() == [0.75, 0.0, 0.75, 0.5, 0.5]


def test_advantages_are_leave_one_out():
    found, _ = losses(SPO())
    rate, _ = win_rates(GROUPS, "sigmoid", torch.float64)
    three = rate[[0, 2, 3]]
    expected = [(three[i] - (three.sum() - three[i]) / 2).item() for i in range(3)]
    assert plain_metric(found.metrics["advantage"])[:3].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_completion_alone_has_no_weight():
    found, _ = losses()
    assert found.weight.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert [found.metrics[name].numel() for name in ("win_rate", "advantage")] == [5, 5]
    assert not any(plain_metric(value).requires_grad for value in found.metrics.values())
    rate, size = win_rates(GROUPS, "sign", torch.float64)
    assert (rate[1].item(), size[1].item()) == (0.5, 1.0) and bool(torch.isfinite(rate).all())
    assert SPO().weights(torch.tensor(LENGTHS), GROUPS).tolist() == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("win", ["sigmoid", "sign"])
def test_on_win_rates_it_is_nash_md_without_kl_times_k_over_k_minus_one(win):
    objective, kin = SPO(win=win), NashMD(beta=0.0)
    rate, size = win_rates(GROUPS, win, torch.float64)
    scores = make_scores(kin, LOGP, LOGP, LENGTHS)
    nash = kin(scores, Rewards(reward=rate, group=GROUPS.group)).per_unit
    mine = losses(objective)[0].per_unit
    factor = torch.where(size > 1, size / (size - 1).clamp(min=1), 0.0)
    torch.testing.assert_close(mine, factor * nash, rtol=1e-12, atol=1e-12)


def test_expected_gradient_is_that_of_the_win_rate_against_oneself():
    """Every pair of samples of three arms, by its probability: K / (K - 1) = 2 times the gradient of P(y >
    y'), y' ~ sg(pi).
    """
    logits = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([0.2, 1.5, -0.3], dtype=torch.float64)
    logp = logits.log_softmax(0)
    total = torch.zeros(()).double()
    for i in range(3):
        for j in range(3):
            signal = Rewards(reward=reward[[i, j]], group=torch.zeros(2, dtype=torch.long))
            scores = make_scores(SPO(), (-1.0, -1.0), (-1.0, -1.0), (1, 1))
            advantage = plain_metric(SPO()(scores, signal).metrics["advantage"])
            total = total - (logp[i] + logp[j]).exp().detach() * (advantage * logp[[i, j]]).mean()
    (mine,) = torch.autograd.grad(total, logits, retain_graph=True)
    wins = torch.sigmoid(reward[:, None] - reward[None, :])
    exact = logp.exp() @ wins @ logp.exp().detach()
    torch.testing.assert_close(mine, -2 * torch.autograd.grad(exact, logits)[0], rtol=1e-10, atol=1e-12)
