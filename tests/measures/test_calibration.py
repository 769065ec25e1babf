"""Accuracy and calibration against numbers worked out by hand, and on models whose calibration is known."""

import math

import numpy as np
import pytest

from preftune.errors import ConfigError, DataError
from preftune.measures.calibration import calibrate


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_by_hand():
    """Chances 0.9, 0.6, 0.2, 0.97 of the chosen one: confidences 0.9, 0.6, 0.8, 0.97, the third wrong."""
    found = calibrate([logit(p) for p in (0.9, 0.6, 0.2, 0.97)], [0, 1, 2, 3], num_bins=5)
    assert found.accuracy.mean == 0.75 and (found.num_pairs, found.num_prompts) == (4, 4)
    assert found.brier.mean == pytest.approx((0.01 + 0.16 + 0.64 + 0.0009) / 4)
    assert found.nll.mean == pytest.approx(-sum(map(math.log, (0.9, 0.6, 0.2, 0.97))) / 4)
    # bins of width 0.1 from 0.5: 0.6 falls by rounding into the first or the second; 0.8 likewise; the last
    # holds two
    assert [one.num_pairs for one in found.bins][-1] == 2
    assert found.bins[-1].confidence == pytest.approx(0.935) and found.bins[-1].accuracy == 1.0
    assert found.ece.mean == pytest.approx((2 * (1 - 0.935) + (1 - 0.6) + 0.8) / 4)
    assert found.ece.low <= found.ece.mean <= found.ece.high


def test_pairs_of_a_prompt_count_as_one_in_the_means():
    found = calibrate([1.0, 1.0, 1.0, -1.0], [7, 7, 7, 3])
    assert found.accuracy.mean == 0.5 and found.accuracy.num == found.num_prompts == 2


def test_soft_outcomes():
    """A pair that is the other way round with chance 0.3, and a model that says 0.7: as calibrated as can be."""
    found = calibrate([logit(0.7)] * 3, [0, 1, 2], [0.7] * 3, num_bins=5)
    assert found.ece.mean == pytest.approx(0, abs=1e-12) and found.brier.mean == pytest.approx(0, abs=1e-12)
    assert found.accuracy.mean == pytest.approx(0.7)
    assert found.nll.mean == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3))


def test_a_model_that_knows_what_it_knows():
    """Chosen is the better one with the very chance that the model says: the error is small, and of a model
    twice as sure it is large.
    """
    random = np.random.default_rng(0)
    margin = random.normal(size=4000) * 1.5
    flipped = random.random(4000) > 1 / (1 + np.exp(-margin))
    seen = np.where(flipped, -margin, margin)
    good, sure = calibrate(seen, np.arange(4000)), calibrate(3 * seen, np.arange(4000))
    assert good.ece.mean < 0.03 < 0.1 < sure.ece.low
    assert good.accuracy == sure.accuracy and good.nll.mean < sure.nll.mean
    assert sum(one.num_pairs for one in good.bins) == 4000


def test_knowing_nothing():
    found = calibrate([0.0, 0.0], [0, 1])
    assert found.accuracy.mean == 0.5  # a tie counts one half
    assert found.brier.mean == 0.25 and found.nll.mean == pytest.approx(math.log(2))


def test_intervals_of_shares():
    """Wilson: of 8 of 8 the lower end is 1 / (1 + z^2 / 8) = 0.6756; of 5 of 10 it is 0.2366 to 0.7634."""
    all_right = calibrate([1.0] * 8, range(8)).accuracy
    assert (all_right.mean, all_right.low, all_right.high) == (
        1.0,
        pytest.approx(0.67559, abs=1e-5),
        pytest.approx(1.0),
    )
    half = calibrate([1.0, -1.0] * 5, range(10)).accuracy
    assert (half.low, half.high) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))
    brier = calibrate([9.0, -9.0], [0, 1]).brier
    assert (brier.low, brier.high) == (0.0, 1.0)


def test_extremes_stay_finite():
    found = calibrate([800.0, -800.0], [0, 0])
    assert found.nll.mean == 400.0 and found.brier.mean == 0.5 and found.ece.mean == pytest.approx(0.5)
    assert found.ece.high == math.inf  # one prompt says nothing of the spread


def test_mistakes():
    with pytest.raises(DataError):
        calibrate([], [])
    with pytest.raises(DataError):
        calibrate([math.nan], [0])
    with pytest.raises(ConfigError):
        calibrate([1.0], [0], num_bins=0)
