"""BCO: log-ratios 1, -2, 9 (without a label) and 4 at beta .5, so implicit rewards .5, -1 and 2 count, with
mean .5.
"""

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.bco import BCO
from preftune.objectives.bco_pair import BCOPair
from preftune.types import Labels
from tests.objectives.coupled import couple, coupled, make_step_scores, numbers, pairs_of
from tests.objectives.golden import gradient, log_sigma, sigma

LABELS = Labels(label=torch.tensor([1, -1, 0, -1]))
BETA = BCO(beta=0.5)


def step():
    return make_step_scores([-1.0, -5.0, -1.0, -1.0], [-2.0, -3.0, -10.0, -5.0], [1, 2, 1, 1])


def test_golden():
    """-log sigma(0), -log sigma(1.5) and -log sigma(-1.5)."""
    scores = coupled(BETA, step(), LABELS)
    losses = BETA(scores, LABELS)
    assert losses.weight.tolist() == [1, 1, 0, 1]
    kept = losses.per_unit[losses.weight > 0]
    assert kept.tolist() == pytest.approx([0.6931472, 0.2014133, 1.7014133], rel=1e-6)
    low, high = 0.5 * sigma(-1.5), 0.5 * sigma(1.5)
    assert gradient(losses, scores) == pytest.approx([-0.25, low, low, 0, high], rel=1e-9)
    metrics = {name: value.tolist() for name, value in losses.metrics.items()}
    assert metrics == {
        "bco/delta": pytest.approx([0.5]),
        "logps/chosen": pytest.approx([-1.0]),
        "logps/rejected": pytest.approx([-5.0, -1.0]),
        "log_ratios/chosen": pytest.approx([1.0]),
        "log_ratios/rejected": pytest.approx([-2.0, 4.0]),
    }


def test_delta_is_the_mean_of_all_steps_this_one_included():
    first, state = couple(BETA, step(), LABELS)
    assert first.whole["delta"].item() == pytest.approx(0.5)
    assert numbers(state) == {"sum": pytest.approx(1.5), "count": 3}
    other = make_step_scores([-1.0, -3.0], [-6.0, -4.0])  # rewards 2.5 and .5
    second, later = couple(BETA, other, Labels(label=torch.tensor([1, -1])), state)
    assert second.whole["delta"].item() == pytest.approx(4.5 / 5)
    assert numbers(later) == {"sum": pytest.approx(4.5), "count": 5}
    assert {name: tensor.dtype for name, tensor in later.items()} == {
        "sum": torch.float64,
        "count": torch.int64,
    }
    assert numbers(state) == {"sum": pytest.approx(1.5), "count": 3}  # what came in is as it was


def test_a_step_without_labels_leaves_delta():
    found, state = couple(BETA, step(), Labels(label=torch.zeros(4, dtype=torch.long)))
    assert found.whole["delta"].item() == 0
    assert numbers(state) == {"sum": 0, "count": 0}


def test_a_single_completion_is_its_own_mean():
    found, _ = couple(BETA, make_step_scores([-1.0], [-6.0]), Labels(label=torch.tensor([1])))
    assert found.whole["delta"].item() == pytest.approx(2.5)


def test_with_delta_zero_the_two_of_a_pair_are_bco_pair():
    """Log-ratios 1 and -1 cancel."""
    scores = coupled(BETA, make_step_scores([-1.0, -4.0], [-2.0, -3.0]), Labels(label=torch.tensor([1, -1])))
    single, pair = BETA(scores, Labels(label=torch.tensor([1, -1]))), BCOPair(beta=0.5)(scores, pairs_of(1))
    assert single.per_unit.sum().item() == pytest.approx(pair.per_unit.item(), rel=1e-12)
    assert single.per_unit.sum().item() == pytest.approx(-2 * log_sigma(0.5), rel=1e-9)
    assert gradient(single, scores) == pytest.approx(gradient(pair, scores), rel=1e-12)


def test_a_state_of_another_shape_is_refused():
    good = BETA.initial_state()
    vector = torch.zeros(1, dtype=torch.int64)
    for state in (
        {},
        good | {"more": good["sum"]},
        good | {"sum": good["sum"].float()},
        good | {"count": vector},
    ):
        with pytest.raises(
            StorageError,
            match=r"The state of bco does not fit; got .*; expected count \(int64, 0 axes\), sum",
        ):
            couple(BETA, step(), LABELS, state)
