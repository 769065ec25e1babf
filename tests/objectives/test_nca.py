"""NCA and InfoNCA, on a pair and on ragged groups."""

import math

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.nca import NCA, InfoNCA
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import assert_same, check_pair, log_sigma, sigma


def test_nca_on_a_pair():
    """-log sigma(.1) - .5 log sigma(-.1) - .5 log sigma(.1) = 1.338793."""
    slopes = (0.1 * (-sigma(-0.1) + 0.5 * sigma(0.1)), 0.1 * 0.5 * sigma(-0.1))
    check_pair(NCA(beta=0.1, reward_temperature=0.0), value=1.338793, slopes=slopes, rewards=(0.1, -0.1))


def test_nca_on_a_pair_with_a_soft_target():
    """p = softmax(1, 0) at temperature 1 = sigma(1), sigma(-1)."""
    p = sigma(1.0)
    value = -p * log_sigma(0.1) - (1 - p) * log_sigma(-0.1) - 0.5 * log_sigma(-0.1) - 0.5 * log_sigma(0.1)
    slopes = (0.1 * (-p * sigma(-0.1) + 0.5 * sigma(0.1)), 0.1 * (-(1 - p) * sigma(0.1) + 0.5 * sigma(-0.1)))
    check_pair(NCA(beta=0.1), value=value, slopes=slopes, rewards=(0.1, -0.1))


def test_infonca_on_a_pair_is_dpo():
    check_pair(
        InfoNCA(beta=0.1, reward_temperature=0.0),
        value=0.598139,
        slopes=(-0.1 * sigma(-0.2), 0.1 * sigma(-0.2)),
        rewards=(0.1, -0.1),
    )
    assert_same(InfoNCA(beta=0.4, reward_temperature=0.0), DPO(beta=0.4))


def test_infonca_with_a_soft_target_is_smoothed_dpo():
    """p = sigma(1 / T): at T = 1 / ln 4 the target is .8, cDPO's with e = .2."""
    assert_same(InfoNCA(beta=0.4, reward_temperature=1 / math.log(4)), DPO(beta=0.4, label_smoothing=0.2))


# Groups of 3 and 2 whose completions are interleaved; log-ratios 1, -1, 0, 2, -2 over single tokens.
RATIOS = torch.tensor([1.0, -1.0, 0.0, 2.0, -2.0], dtype=torch.float64)
GROUPS = Rewards(reward=torch.tensor([3.0, 0.0, 1.0, 1.0, 1.0]), group=torch.tensor([7, 4, 7, 7, 4]))


def group_scores() -> TokenScores:
    ref = torch.full((5,), -3.0, dtype=torch.float64)
    return TokenScores(
        logp=(ref + RATIOS).requires_grad_(), ref_logp=ref, lengths=torch.ones(5, dtype=torch.long)
    )


def softmax(*x: float) -> list[float]:
    total = sum(map(math.exp, x))
    return [math.exp(v) / total for v in x]


def test_infonca_on_groups():
    """Units in the order of the group ids: group 4 holds completions 1 and 4, group 7 holds 0, 2 and 3; T =
    2.
    """
    losses = InfoNCA(beta=0.5, reward_temperature=2.0)(group_scores(), GROUPS)
    four = -sum(p * math.log(q) for p, q in zip(softmax(0.0, 0.5), softmax(-0.5, -1.0), strict=True))
    seven = -sum(p * math.log(q) for p, q in zip(softmax(1.5, 0.5, 0.5), softmax(0.5, 0.0, 1.0), strict=True))
    assert losses.per_unit.tolist() == pytest.approx([four, seven], rel=1e-6)
    assert losses.weight.tolist() == [1.0, 1.0]


def test_infonca_gradient_is_policy_minus_target():
    scores = group_scores()
    losses = InfoNCA(beta=0.5, reward_temperature=2.0)(scores, GROUPS)
    slopes = torch.autograd.grad(losses.per_unit.sum(), scores.logp)[0].tolist()
    seven = [0.5 * (q - p) for p, q in zip(softmax(1.5, 0.5, 0.5), softmax(0.5, 0.0, 1.0), strict=True)]
    assert [slopes[0], slopes[2], slopes[3]] == pytest.approx(seven, rel=1e-6)


def test_nca_on_groups():
    """The noise term is the mean over the K of each group."""
    losses = NCA(beta=0.5, reward_temperature=2.0)(group_scores(), GROUPS)
    target, implicit = softmax(1.5, 0.5, 0.5), (0.5, 0.0, 1.0)
    seven = sum(-p * log_sigma(r) - log_sigma(-r) / 3 for p, r in zip(target, implicit, strict=True))
    four = sum(
        -p * log_sigma(r) - log_sigma(-r) / 2 for p, r in zip(softmax(0.0, 0.5), (-0.5, -1.0), strict=True)
    )
    assert losses.per_unit.tolist() == pytest.approx([four, seven], rel=1e-6)


def test_metrics_are_over_pairs_whose_rewards_differ():
    """Group 4: 4 over 1 (implicit rewards -1, -.5). Group 7: 0 over 2 and 3 (.5 against 0 and 1); 2 and 3
    tie.
    """
    metrics = InfoNCA(beta=0.5)(group_scores(), GROUPS).metrics
    assert sorted(metrics["rewards/margins"].tolist()) == [-0.5, -0.5, 0.5]
    assert metrics["rewards/accuracies"].mean().item() == pytest.approx(1 / 3)
    assert sorted(metrics["log_ratios/chosen"].tolist()) == [-2.0, 1.0, 1.0]


def test_a_group_of_one_has_nothing_to_compare():
    scores = TokenScores(logp=torch.tensor([-1.0]), ref_logp=torch.tensor([-2.0]), lengths=torch.tensor([1]))
    losses = InfoNCA()(scores, Rewards(reward=torch.tensor([3.0]), group=torch.tensor([0])))
    assert losses.per_unit.tolist() == [0.0]
    assert losses.metrics["rewards/margins"].numel() == 0
