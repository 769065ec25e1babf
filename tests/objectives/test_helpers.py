"""The small functions that objectives are made of, and their refusals."""

import math

import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives import checks
from preftune.objectives.base import pair_metrics, score_metrics
from preftune.objectives.groupwise import (
    all_pairs,
    group_log_softmax,
    group_metrics,
    group_sum,
    group_weights,
    reward_softmax,
)
from preftune.objectives.links import binary_kl, bounded_exp, bounded_expm1, hinge, log_odds, logistic
from preftune.objectives.pairwise import flip_chance
from preftune.types import Pairs, Rewards, TokenScores
from tests.objectives.golden import log_sigma

GROUPS = Rewards(reward=torch.tensor([3.0, 0.0, 1.0, 1.0, 1.0, 2.0]), group=torch.tensor([7, 4, 7, 7, 4, 9]))
VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_logistic():
    margin = torch.tensor([0.5, -700.0], dtype=torch.float64)
    expected = [-0.8 * log_sigma(0.5) - 0.2 * log_sigma(-0.5), 0.8 * 700]
    assert logistic(margin, 0.2).tolist() == pytest.approx(expected, rel=1e-12)
    assert logistic(margin).tolist() == pytest.approx([-log_sigma(0.5), 700.0], rel=1e-12)


def test_logistic_with_a_chance_for_each():
    margin, wrong = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.5, -700.0], [0.0, 0.2, 1.0]))
    expected = [-log_sigma(0.5), -0.8 * log_sigma(0.5) - 0.2 * log_sigma(-0.5), 0.0]
    assert logistic(margin, wrong).tolist() == pytest.approx(expected, rel=1e-12)


def test_flip_chance():
    """By the data, by the setting, but not by both: they cancel."""
    pairs = Pairs(chosen=torch.tensor([0, 2]), rejected=torch.tensor([1, 3]))
    assert flip_chance(pairs, 0.2, torch.float64) == 0.2
    known = Pairs(chosen=pairs.chosen, rejected=pairs.rejected, probability=torch.tensor([1.0, 0.25]))
    found = flip_chance(known, 0.2, torch.float64)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([0.2, 0.2 * 0.25 + 0.8 * 0.75])


def test_hinge():
    assert hinge(torch.tensor([-1.0, 0.5, 1.0, 2.0])).tolist() == [2.0, 0.5, 0.0, 0.0]


def test_binary_kl():
    first, second = torch.tensor([0.0, 800.0]).double(), torch.tensor([math.log(3), -800.0]).double()
    # KL(.5 || .75) = .5 log(.5 / .75) + .5 log(.5 / .25); a certain event of probability e^-800 costs 800
    assert binary_kl(first, second).tolist() == pytest.approx([0.5 * math.log(4 / 3), 800.0])
    assert binary_kl(first, first).tolist() == pytest.approx([0.0, 0.0])


def test_bounded_exponentials():
    x = torch.tensor([-1e-9, 2.0, 80.0, 80.1, 5000.0], dtype=torch.float64)
    assert bounded_exp(x).tolist() == pytest.approx(
        [math.exp(-1e-9), math.exp(2)] + [math.exp(80)] * 3, rel=1e-12
    )
    assert bounded_expm1(x)[:2].tolist() == pytest.approx([-1e-9, math.expm1(2)], rel=1e-8)
    assert bool(torch.isfinite(bounded_exp(x.float())).all())


def test_log_odds():
    p = [0.25, 0.5, 0.75, 1 - 1e-6]
    logp = torch.tensor(p, dtype=torch.float64).log()
    assert log_odds(logp).tolist() == pytest.approx([math.log(x / (1 - x)) for x in p], rel=1e-9, abs=1e-12)
    edge = log_odds(torch.tensor([0.0, -1e-7, -1e-8], dtype=torch.float64)).tolist()
    assert edge == pytest.approx([-math.log(math.expm1(1e-7))] * 3, rel=1e-12)
    # far below 0 the odds are the probability; fp32 keeps them
    assert log_odds(torch.tensor([-200.0])).item() == -200.0


def test_groups_are_told_apart_by_id_in_any_order():
    assert group_weights(GROUPS).tolist() == [1.0, 1.0, 1.0]
    assert group_sum(VALUES, GROUPS).tolist() == [7.0, 8.0, 6.0]  # ids 4, 7, 9
    softmax = group_log_softmax(VALUES, GROUPS).exp()
    assert group_sum(softmax, GROUPS).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert softmax[[0, 2, 3]].tolist() == pytest.approx(torch.tensor([1.0, 3.0, 4.0]).softmax(0).tolist())


def test_group_softmax_does_not_overflow():
    two = Rewards(reward=VALUES[:3], group=torch.tensor([0, 0, 1]))
    logp = group_log_softmax(torch.tensor([1000.0, 0.0, -1000.0]), two)
    assert logp.tolist() == [0.0, -1000.0, 0.0]


def test_group_softmax_gradient():
    """d log softmax_0 / d x = onehot - softmax, in spite of the subtracted maximum."""
    x = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    one = Rewards(reward=VALUES[:3], group=torch.tensor([0, 0, 0]))
    slope = torch.autograd.grad(group_log_softmax(x, one)[0], x)[0]
    torch.testing.assert_close(slope, torch.tensor([1.0, 0.0, 0.0]).double() - x.detach().softmax(0))


def test_reward_softmax():
    soft = reward_softmax(GROUPS, 2.0, torch.float64)
    assert soft[[0, 2, 3]].tolist() == pytest.approx(torch.tensor([1.5, 0.5, 0.5]).softmax(0).tolist())
    tied = Rewards(reward=torch.tensor([3.0, -5.0, 3.0, 2.0, -4.0]), group=torch.tensor([7, 4, 7, 7, 4]))
    assert reward_softmax(tied, 0.0, torch.float64).tolist() == [0.5, 0.0, 0.5, 0.0, 1.0]


def test_all_pairs():
    """Group 7: (0, 2), (0, 3) and the tie (2, 3) in the order given; group 4: 4 over 1; group 9 has none."""
    pairs, weight = all_pairs(GROUPS)
    found = dict(
        zip(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True), weight.tolist(), strict=True)
    )
    third = pytest.approx(1 / 3)
    assert found == {(0, 2): third, (0, 3): third, (2, 3): third, (4, 1): 1.0}


def test_group_metrics_leave_ties_out():
    scores = TokenScores(logp=-VALUES, lengths=torch.ones(6, dtype=torch.long))
    metrics = group_metrics(scores, GROUPS, VALUES)
    assert sorted(metrics["rewards/margins"].tolist()) == [-3.0, -2.0, 3.0]
    assert "log_ratios/chosen" not in metrics


def test_score_metrics_of_a_tie():
    """An equal score counts one half."""
    scores = TokenScores(logp=torch.tensor([-1.0, -2.0, -3.0]), lengths=torch.tensor([1, 2]))
    pair = Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    metrics = score_metrics(scores, pair, torch.tensor([2.0, 2.0]))
    assert {name: value.item() for name, value in metrics.items()} == {
        "logps/chosen": -1.0,
        "logps/rejected": -5.0,
        "rewards/chosen": 2.0,
        "rewards/rejected": 2.0,
        "rewards/margins": 0.0,
        "rewards/accuracies": 0.5,
    }


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.check_positive, [1e-9, 5.0], [0.0, -1.0, math.inf, math.nan]),
        (checks.check_not_negative, [0.0, 5.0], [-1e-9, math.inf, math.nan]),
        (checks.check_finite, [-5.0, 0.0, 5.0], [math.inf, -math.inf, math.nan]),
        (lambda name, **v: checks.check_between(name, "[0, 0.5)", **v), [0.0, 0.49], [-1e-9, 0.5, math.nan]),
        (lambda name, **v: checks.check_between(name, "(0.5, 1]", **v), [0.51, 1.0], [0.5, 1.01, math.nan]),
        (lambda name, **v: checks.check_choice(name, ("a", "b"), **v), ["a", "b"], ["c", ""]),
    ],
)
def test_checks(check, good, bad):
    for value in good:
        check("name", field=value)
    for value in bad:
        with pytest.raises(ConfigError, match=r"^name: field is"):
            check("name", field=value)


def test_every_value_is_checked():
    with pytest.raises(ConfigError, match="second"):
        checks.check_positive("name", first=1.0, second=-1.0)


def test_implicit_rewards_of_pairs_are_beta_times_summed_log_ratios():
    """Completions of two tokens and one: log-ratios 1.5 and -0.5; at beta .2 rewards of .3 and -.1."""
    scores = TokenScores(
        logp=torch.tensor([-1.0, -1.5, -3.0]),
        ref_logp=torch.tensor([-2.0, -2.0, -2.5]),
        lengths=torch.tensor([2, 1]),
    )
    found = pair_metrics(scores, Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1])), 0.2)
    assert found["log_ratios/chosen"].tolist() == pytest.approx([1.5])
    assert found["rewards/chosen"].tolist() == pytest.approx([0.3])
    assert found["rewards/rejected"].tolist() == pytest.approx([-0.1])
    assert found["rewards/margins"].tolist() == pytest.approx([0.4])
