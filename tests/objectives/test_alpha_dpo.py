"""AlphaDPO: two pairs, completions of 2, 1, 1 and 2 tokens; M is .5 and 2.5, so the mean is 1.5, the
deviation sqrt 2.
"""

import math

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.alpha_dpo import AlphaDPO
from preftune.objectives.simpo import SimPO
from tests.objectives.coupled import couple, coupled, make_step_scores, numbers, pairs_of
from tests.objectives.golden import gradient, log_sigma, sigma

LOGP, REF, LENGTHS = [-2.0, -3.0, -1.0, -6.0], [-3.0, -3.0, -2.0, -3.0], [2, 1, 1, 2]  # lpbar -1, -3, -1, -3
OBJECTIVE = AlphaDPO(beta=0.5, gamma=0.2, alpha=0.4)


def step():
    return make_step_scores(LOGP, REF, LENGTHS)


def test_golden():
    """z = -1 / sqrt 2 and 1 / sqrt 2; margins .5 * 2 - .2 - .5 * .4 * z."""
    scores = coupled(OBJECTIVE, step(), pairs_of(2))
    z = [-1 / math.sqrt(2), 1 / math.sqrt(2)]
    assert scores.coupling.pair["z"].tolist() == pytest.approx(z, rel=1e-12)
    losses = OBJECTIVE(scores, pairs_of(2))
    margins = [0.5 * 2 - 0.2 - 0.2 * number for number in z]
    assert losses.per_unit.tolist() == pytest.approx([-log_sigma(margin) for margin in margins], rel=1e-9)
    first, second = (-0.5 * sigma(-margin) for margin in margins)
    assert gradient(losses, scores) == pytest.approx(
        [first / 2, first / 2, -first, second, -second / 2, -second / 2], rel=1e-9
    )
    assert losses.metrics["alpha_dpo/margin"].tolist() == pytest.approx([0.2 + 0.2 * number for number in z])
    assert losses.metrics["rewards/chosen"].tolist() == pytest.approx([-0.5, -0.5])
    assert losses.metrics["log_ratios/chosen"].tolist() == pytest.approx([1.0, 1.0])


def test_moments_run_over_the_steps():
    """A second step with the same M, but for a new mean of 0."""
    _, state = couple(OBJECTIVE, step(), pairs_of(2))
    assert numbers(state) == {
        "mean": pytest.approx(0.15),
        "std": pytest.approx(0.1 * math.sqrt(2)),
        "steps": 1,
    }
    moved = make_step_scores(LOGP, [-1.0 - 1.0 + 2.0, -3.0, -2.0 + 1.5, -3.0], LENGTHS)  # M -1 and 1
    found, later = couple(OBJECTIVE, moved, pairs_of(2), state)
    mean = 9 * 1.5 / 19
    assert found.pair["z"].tolist() == pytest.approx(
        [(-1 - mean) / math.sqrt(2), (1 - mean) / math.sqrt(2)], rel=1e-9
    )
    assert numbers(later) == {
        "mean": pytest.approx(0.135),
        "std": pytest.approx(0.19 * math.sqrt(2)),
        "steps": 2,
    }


def test_without_alpha_it_is_simpo():
    objective = AlphaDPO(beta=0.7, gamma=0.3, alpha=0.0)
    scores = coupled(objective, step(), pairs_of(2))
    one, other = objective(scores, pairs_of(2)), SimPO(beta=0.7, gamma=0.3)(scores, pairs_of(2))
    assert one.per_unit.tolist() == other.per_unit.tolist()
    assert gradient(one, scores) == gradient(other, scores)


def test_a_start_at_the_reference_has_simpo_s_margin():
    scores = coupled(OBJECTIVE, make_step_scores(LOGP, LOGP, LENGTHS), pairs_of(2))
    assert OBJECTIVE(scores, pairs_of(2)).metrics["alpha_dpo/margin"].tolist() == pytest.approx([0.2, 0.2])


def test_a_state_of_another_shape_is_refused():
    assert OBJECTIVE.couples == {"scores"}
    with pytest.raises(StorageError, match="The state of alpha-dpo does not fit"):
        couple(OBJECTIVE, step(), pairs_of(2), {"mean": torch.zeros(())})
