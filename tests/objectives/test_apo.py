"""APO-zero and APO-down."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.apo import APODown, APOZero
from preftune.types import Labels, Pairs
from tests.objectives.golden import as_labels, check_pair, random_scores, sigma


def test_zero():
    """1 - sigma(.1) + sigma(-.1) = .950042; slope of either -+ beta sigma(.1) sigma(-.1)."""
    slope = 0.1 * sigma(0.1) * sigma(-0.1)
    check_pair(APOZero(), value=0.950042, slopes=(-slope, slope), rewards=(0.1, -0.1))


def test_zero_sides_are_apart():
    """Implicit rewards .1 and .3: 1 - sigma(.1) + sigma(.3)."""
    check_pair(
        APOZero(),
        ref=(-11.0, -17.0),
        value=1 - sigma(0.1) + sigma(0.3),
        slopes=(-0.1 * sigma(0.1) * sigma(-0.1), 0.1 * sigma(0.3) * sigma(-0.3)),
        rewards=(0.1, 0.3),
    )


def test_down():
    """sigma(.1) + 1 - sigma(.2) = .975145."""
    difference = 0.1 * sigma(0.2) * sigma(-0.2)
    own = 0.1 * sigma(0.1) * sigma(-0.1)
    check_pair(APODown(), value=0.975145, slopes=(own - difference, difference), rewards=(0.1, -0.1))


def test_down_lets_the_chosen_one_fall_at_the_reference():
    """Slopes there: beta / 4 - beta / 4 = 0 on the chosen completion, +beta / 4 on the rejected one."""
    check_pair(APODown(), ref=(-10.0, -14.0), value=1.0, slopes=(0.0, 0.025), rewards=(0.0, 0.0))


def test_singles_are_the_pair_taken_apart():
    scores, pairs = random_scores()
    losses = APOZero(unit="completion")(scores, as_labels(pairs))
    per_pair = APOZero()(scores, pairs).per_unit
    torch.testing.assert_close(losses.per_unit[pairs.chosen] + losses.per_unit[pairs.rejected], per_pair)
    assert APOZero().signal is Pairs
    assert APOZero(unit="completion").signal is Labels


def test_singles_golden():
    """Implicit rewards .1 h of a preferred and of a dispreferred completion: 1 - sigma(r) and sigma(r)."""
    scores, _ = random_scores(lengths=(1, 1))
    losses = APOZero(unit="completion")(scores, Labels(label=torch.tensor([1, -1])))
    ratio = (scores.logp - scores.ref_logp).tolist()
    assert losses.per_unit.tolist() == pytest.approx([1 - sigma(0.1 * ratio[0]), sigma(0.1 * ratio[1])])
    assert set(losses.metrics) == {
        "logps/chosen",
        "logps/rejected",
        "log_ratios/chosen",
        "log_ratios/rejected",
    }


def test_a_completion_without_a_label_weighs_nothing():
    scores, _ = random_scores(lengths=(1, 1, 2))
    objective, labels = APOZero(unit="completion"), Labels(label=torch.tensor([1, 0, -1]))
    losses = objective(scores, labels)
    assert losses.weight.tolist() == [1.0, 0.0, 1.0]
    slopes = torch.autograd.grad(reduce_losses(losses, 2.0), scores.logp)[0]
    assert slopes[1].item() == 0.0
    assert slopes[0].item() < 0 < slopes[2].item()
