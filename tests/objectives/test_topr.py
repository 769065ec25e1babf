"""TOPR: ratios .75 and .7 of two completions, good and bad."""

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.topr import TOPR
from preftune.types import Rewards
from tests.objectives.samples import check_samples, losses_of, numbers


def rewarded(first: float, second: float) -> Rewards:
    return Rewards(reward=numbers([first, second]), group=torch.tensor([0, 0]))


def test_good_samples_count_in_full_and_bad_ones_by_their_ratio():
    """Rewards 2 and -3: weights 1 and .7, held constant; logp -3 and -1.5."""
    check_samples(
        TOPR(),
        units=[2 * 3.0, -0.7 * 3 * 1.5],
        slopes=[-2.0, -2.0, 0.7 * 3],
        signal=rewarded(2.0, -3.0),
        metrics={"advantage/abs": [2.0, 3.0], "ratio/mean": [0.75, 0.7], "topr/taper": [1.0, 0.7]},
    )


@pytest.mark.parametrize(
    ("bounds", "tapers"),
    [
        (dict(positive_low=0.0, positive_high=0.6), (0.6, 0.7)),
        (dict(positive_low=0.2, positive_high=0.9), (0.75, 0.7)),
        (dict(negative_low=0.9), (1.0, 0.9)),
        (dict(negative_high=0.4), (1.0, 0.4)),
    ],
)
def test_bounds(bounds, tapers):
    metrics = losses_of(TOPR(**bounds), rewarded(2.0, -3.0))[0].metrics
    assert metrics["topr/taper"].tolist() == pytest.approx(tapers)


def test_a_reward_of_zero_is_good():
    metrics = losses_of(TOPR(), rewarded(0.0, -1e-9))[0].metrics
    assert metrics["topr/taper"].tolist() == pytest.approx([1.0, 0.7])


def test_with_all_bounds_at_one_it_is_reinforce():
    flat = losses_of(TOPR(negative_low=1.0), rewarded(2.0, -3.0))[0]
    assert torch.equal(flat.per_unit, losses_of(REINFORCE(baseline="none"), rewarded(2.0, -3.0))[0].per_unit)


def test_bounds_in_order(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=r"^topr: positive_low is above positive_high"):
        TOPR(positive_low=1.1)
    with pytest.raises(ConfigError, match=r"^topr: negative_low is above negative_high"):
        TOPR(negative_high=0.5, negative_low=0.6)
