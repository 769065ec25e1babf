"""Shifts and their concentration, against numbers worked out by hand."""

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.measures.shifts import (
    QUANTITIES,
    TokenShifts,
    completion_shifts,
    gini,
    histogram,
    pooled,
    summarize,
    symmetric_edges,
)


def tokens(ratio, shift, centred=None) -> TokenShifts:
    ratio, shift = np.array(ratio, dtype=np.float32), np.array(shift, dtype=np.float32)
    ref = np.full(len(ratio), -2.0, dtype=np.float32)
    return TokenShifts(
        logp=ref + ratio,
        ref_logp=ref,
        logit_shift=shift,
        centred_logit_shift=shift if centred is None else np.array(centred, dtype=np.float32),
        greedy_log_ratio=np.array(ratio, dtype=np.float32) / 2,
    )


def by_differences(values) -> float:
    """The definition by mean absolute differences: G = sum_ij |v_i - v_j| / (2 n sum v)."""
    v = np.asarray(values, dtype=float)
    return float(np.abs(v[:, None] - v[None]).sum() / (2 * len(v) * v.sum()))


def test_gini_by_hand():
    assert gini(np.array([3.0])) == 0
    assert gini(np.array([2.0, 2.0, 2.0])) == pytest.approx(0, abs=1e-15)
    assert gini(np.zeros(4)) == 0
    assert gini(np.array([0.0, 0.0, 0.0, 5.0])) == pytest.approx(3 / 4)
    assert gini(np.array([3.0, 1.0])) == pytest.approx(1 / 4)  # (-1 * 1 + 1 * 3) / (2 * 4)
    values = np.random.default_rng(0).exponential(size=50)
    assert gini(values) == pytest.approx(by_differences(values))
    assert gini(7 * values) == pytest.approx(gini(values))
    with pytest.raises(DataError, match="0 or more"):
        gini(np.array([-1.0, 1.0]))
    with pytest.raises(DataError, match="0 or more"):
        gini(np.array([]))


def test_a_completion_by_hand():
    found = completion_shifts(tokens([0.5, -1.0, 0.25], [-3.0, 1.0, 0.0], [1.0, -1.0, 1.0]))
    assert set(found) == set(QUANTITIES)
    assert found == pytest.approx(
        {
            "log_ratio": -0.25,
            "mean_log_ratio": -0.25 / 3,
            "abs_mean_log_ratio": 0.25 / 3,
            "logit_shift": 4.0,
            "mean_logit_shift": 4 / 3,
            "centred_logit_shift": 3.0,
            "mean_centred_logit_shift": 1.0,
            "gini": 0.5,
            "gini_centred": 0.0,  # sorted 0, 1, 3: (-2 * 0 + 0 * 1 + 2 * 3) / (3 * 4)
            "mean_greedy_log_ratio": -0.25 / 6,
        }
    )


def test_prompts_count_once():
    """Two completions of one prompt and one of another: the mean of the prompts' means, 2 degrees of spread."""
    rows = [completion_shifts(tokens([x], [x])) for x in (1.0, 3.0, 6.0)]
    found = summarize(rows, [0, 0, 1])["log_ratio"]
    assert (found.mean, found.num) == (4.0, 2)
    assert found.high - found.mean == pytest.approx(
        12.706 * 2.0, rel=1e-4
    )  # t(0.975, 1) * sd / sqrt(2), sd = sqrt(8)
    with pytest.raises(DataError, match="no completions"):
        summarize([], [])


def test_pooled_tokens_weigh_the_same():
    found = pooled([tokens([1.0], [3.0]), tokens([0.0, -0.5], [-1.0, 0.0])])
    assert found == pytest.approx(
        {"num_tokens": 3, "mean_log_ratio": 0.5 / 3, "gini": 0.5, "gini_centred": 0.5}
    )


def test_histograms():
    edges = symmetric_edges(np.array([-2.0, 0.1, 1.0]), num_bins=4, covered=1.0)
    assert edges == pytest.approx([-2, -1, 0, 1, 2])
    assert histogram(np.array([-9.0, -0.5, 0.5, 9.0]), edges) == pytest.approx([0.25, 0.25, 0.25, 0.25])
    assert symmetric_edges(np.zeros(3), num_bins=2) == pytest.approx([-1, 0, 1])
    rare = symmetric_edges(
        np.array([0.0] * 999 + [4.0]), num_bins=2
    )  # most are 0: the reach falls back on the largest
    assert rare == pytest.approx([-4, 0, 4])


def test_what_cannot_be_used():
    with pytest.raises(DataError, match=r"not finite.*diverged"):
        tokens([np.nan], [1.0])
