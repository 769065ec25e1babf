"""KTO: log-ratios 1, -2, 0.5 (without a label) and 3, mismatched ones 2 and 4, so z0 is 3; beta .5."""

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.apo import APOZero
from preftune.objectives.kto import KTO
from preftune.types import Labels
from tests.objectives.coupled import couple, coupled, make_step_scores
from tests.objectives.golden import gradient, sigma

LABELS = Labels(label=torch.tensor([1, -1, 0, -1]))
LOGP, REF, LENGTHS = [-1.0, -5.0, -1.5, -1.0], [-2.0, -3.0, -2.0, -4.0], [1, 2, 1, 1]


def step():
    return make_step_scores(LOGP, REF, LENGTHS)


def mismatched(*ratios):
    return make_step_scores([ratio - 9.0 for ratio in ratios], [-9.0] * len(ratios), [3] * len(ratios))


def test_golden():
    """1 - sigma(.5 (1 - 3)) = sigma(1), 1 - sigma(.5 (3 + 2)) = sigma(-2.5), 1 - sigma(.5 (3 - 3)) = .5; the
    weights are factors of the loss, and not of the mean.
    """
    objective = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    scores = coupled(objective, step(), LABELS, mismatched=mismatched(2.0, 4.0))
    losses = objective(scores, LABELS)
    assert losses.weight.tolist() == [1, 1, 0, 1]
    kept = losses.per_unit[losses.weight > 0]
    assert kept.tolist() == pytest.approx([2 * 0.7310586, 3 * 0.0758582, 3 * 0.5], rel=1e-6)

    def slope(x):
        return 0.5 * sigma(x) * sigma(-x)

    expected = [-2 * slope(1), 3 * slope(-2.5), 3 * slope(-2.5), 0, 3 * slope(0)]
    assert gradient(losses, scores) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    metrics = {name: value.tolist() for name, value in losses.metrics.items()}
    assert metrics == {
        "kto/z0": pytest.approx([3.0]),
        "logps/chosen": pytest.approx([-1.0]),
        "logps/rejected": pytest.approx([-5.0, -1.0]),
        "log_ratios/chosen": pytest.approx([1.0]),
        "log_ratios/rejected": pytest.approx([-2.0, 3.0]),
    }


def test_z0_is_the_mean_over_completions_or_zero():
    """Sums of log-ratios: 2 and -1 have the mean .5; -4 and 1 have one below zero."""
    for ratios, expected in (((2.0, -1.0), 0.5), ((-4.0, 1.0), 0.0)):
        found, state = couple(KTO(), step(), LABELS, mismatched=mismatched(*ratios))
        assert found.whole["z0"].item() == pytest.approx(expected)
        assert (dict(found.completion), dict(found.pair), state) == ({}, {}, {})


def test_without_z0_it_is_apo_zero_on_single_completions():
    kto, apo = KTO(beta=0.3), APOZero(beta=0.3, unit="completion")
    scores = coupled(kto, step(), LABELS, mismatched=mismatched(-1.0))
    one, other = kto(scores, LABELS), apo(scores, LABELS)
    torch.testing.assert_close(one.per_unit, other.per_unit, rtol=0, atol=0)
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=0)
    assert gradient(one, scores) == gradient(other, scores)


def test_a_step_with_one_prompt_has_a_threshold_of_zero():
    assert couple(KTO(), step(), LABELS)[0].whole["z0"].item() == 0.0


def test_what_it_declares():
    assert KTO().couples == {"mismatched"}
    assert KTO().initial_state() == {}
    with pytest.raises(StorageError, match=r"kto does not fit; got z0 \(float64, 0 axes\); expected nothing"):
        couple(
            KTO(), step(), LABELS, {"z0": torch.zeros((), dtype=torch.float64)}, mismatched=mismatched(1.0)
        )
