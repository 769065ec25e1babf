"""XPO: dpo plus alpha times the log-probability of what the reference wrote."""

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.xpo import XPO
from preftune.types import Hybrid
from tests.objectives.golden import PAIR, gradient, make_scores, random_scores, sigma

LOGP, REF, LENGTHS = (-10.0, -14.0), (-11.0, -13.0), (5, 8)


def golden(sources: tuple[int, int], objective=None):
    objective = objective or XPO(alpha=0.01)
    signal = Hybrid(
        chosen=PAIR.chosen,
        rejected=PAIR.rejected,
        source=torch.tensor(sources),
        group=torch.zeros(2, dtype=torch.long),
    )
    scores = make_scores(objective, LOGP, REF, LENGTHS)
    losses = objective(scores, signal)
    return losses, gradient(losses, scores)


@pytest.mark.parametrize(
    ("sources", "bonus", "slopes"),
    [
        ((1, 2), -0.14, (0.0, 0.01)),  # the rejected one is the reference's: -14 * alpha
        ((2, 1), -0.1, (0.01, 0.0)),
        ((0, 1), 0.0, (0.0, 0.0)),
        ((2, 2), -0.24, (0.01, 0.01)),
    ],
)
def test_golden(sources, bonus, slopes):
    """DPO's .598139 and -+ .1 sigma(-.2); the likelihood of the reference's completion adds to the loss, so
    it falls.
    """
    losses, found = golden(sources)
    assert losses.per_unit.tolist() == pytest.approx([0.598139 + bonus], abs=6e-7)
    push = 0.1 * sigma(-0.2)
    assert found == pytest.approx([-push + slopes[0]] * 5 + [push + slopes[1]] * 8, rel=1e-9)
    assert losses.weight.tolist() == [1.0]
    assert losses.metrics["rewards/margins"].tolist() == pytest.approx([0.2])


def test_without_the_bonus_it_is_dpo():
    given, pairs = random_scores()
    hybrid = Hybrid(
        chosen=pairs.chosen,
        rejected=pairs.rejected,
        source=torch.tensor([1, 2, 1, 2]),
        group=torch.tensor([0, 0, 1, 1]),
    )
    mine, dpo = XPO(beta=0.4, alpha=0.0)(given, hybrid), DPO(beta=0.4)(given, pairs)
    torch.testing.assert_close(mine.per_unit, dpo.per_unit, rtol=0, atol=0)


def test_samples_in_no_pair_play_no_part():
    objective = XPO(alpha=0.5)
    scores = make_scores(objective, (-3.0, -2.0, -4.0), (-2.0, -2.0, -2.0), (1, 1, 1))
    signal = Hybrid(
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        source=torch.tensor([1, 2, 2]),
        group=torch.zeros(3, dtype=torch.long),
    )
    slopes = gradient(objective(scores, signal), scores)
    assert slopes[2] == 0.0
    assert slopes[1] > 0.5
