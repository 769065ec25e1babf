import math

import numpy as np
import pytest

from preftune.errors import ConfigError, DataError
from preftune.stats import (
    MAX_SERIES_FREEDOM,
    cluster_means,
    mean_interval,
    paired_interval,
    preferred_share,
    share_interval,
    t_quantile,
)


# Printed tables of Student's t (two-sided 95% and 99%, one-sided 90%).
@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.975, 1, 12.706204736),
        (0.975, 2, 4.302652730),
        (0.975, 3, 3.182446305),
        (0.975, 4, 2.776445105),
        (0.975, 9, 2.262157163),
        (0.975, 30, 2.042272456),
        (0.995, 5, 4.032142984),
        (0.995, 10, 3.169272673),
        (0.9, 7, 1.414923928),
        (0.975, 120, 1.979930405),
        (0.975, 10**9, 1.959963985),
    ],
)
def test_t_quantile_is_that_of_the_tables(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def test_t_quantile_of_one_and_two_degrees_has_a_closed_form():
    for p in (0.5, 0.6, 0.9, 0.999):
        assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), abs=1e-9)
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))), abs=1e-9)


@pytest.mark.parametrize("probability", [0.6, 0.975, 0.9995])
def test_series_and_expansion_agree_where_they_meet(probability):
    series, expansion = (t_quantile(probability, MAX_SERIES_FREEDOM + more) for more in (0, 1))
    z, step = t_quantile(probability, 10**9), 1 / MAX_SERIES_FREEDOM**2
    assert series - expansion == pytest.approx((z**3 + z) / 4 * step, abs=2e-8)


def test_mean_interval_worked_by_hand():
    # mean 3; squared deviations 4 1 0 1 4, variance 10/4; error sqrt(2.5 / 5); t(0.975, 4) = 2.776445
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3.0
    assert interval.num == 5
    assert interval.high - interval.mean == pytest.approx(2.776445105 * math.sqrt(0.5))
    assert interval.mean - interval.low == pytest.approx(2.776445105 * math.sqrt(0.5))
    assert interval.excludes_zero
    assert mean_interval([1, 2, 3, 4, 5], level=0.99).high == pytest.approx(3 + 4.604094871 * math.sqrt(0.5))


def test_interval_covers_the_true_mean_at_its_level():
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(1500, 6))
    covered = [interval.low <= 2.0 <= interval.high for interval in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(
        0.95, abs=0.017
    )  # three standard errors: 3 sqrt(0.95 * 0.05 / 1500)


def test_one_value_has_no_interval():
    interval = mean_interval([0.7])
    assert (interval.mean, interval.low, interval.high, interval.num) == (0.7, -math.inf, math.inf, 1)
    assert not interval.excludes_zero


def test_zero_excluded_from_both_sides_and_not_by_a_touch():
    assert mean_interval([-1.0, -1.1, -0.9]).excludes_zero
    assert not mean_interval([-1.0, 1.1, 0.2]).excludes_zero
    assert not mean_interval([0.0, 0.0, 0.0]).excludes_zero


def test_paired_interval_averages_the_samples_of_a_prompt_first():
    before = [0.0, 0.0, 1.0, 2.0, 5.0]
    after = [1.0, 3.0, 2.0, 3.0, 8.0]
    interval = paired_interval(before, after, [7, 7, 2, 2, 4])
    # per prompt: 7 -> (1 + 3) / 2 = 2, 2 -> 1, 4 -> 3
    assert interval == mean_interval([1.0, 3.0, 2.0])
    assert (interval.num, interval.mean) == (3, 2.0)


def test_repeating_samples_does_not_narrow_the_paired_interval():
    before, after, prompts = np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.5, 6.0]), np.array([0, 1, 2])
    once = paired_interval(before, after, prompts)
    many = paired_interval(np.repeat(before, 50), np.repeat(after, 50), np.repeat(prompts, 50))
    assert many.low == pytest.approx(once.low)
    assert many.num == once.num == 3


def test_cluster_means_follow_the_sorted_clusters():
    assert cluster_means([1.0, 2.0, 6.0], [9, 3, 9]).tolist() == [2.0, 3.5]


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_empty_and_not_finite_values_are_refused(values):
    with pytest.raises(DataError):
        mean_interval(values)
    with pytest.raises(DataError):
        paired_interval(values, values, list(range(len(values))))


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="2 before and 1 after"):
        paired_interval([1.0, 2.0], [1.0], [0, 1])
    with pytest.raises(DataError, match="cluster"):
        paired_interval([1.0, 2.0], [1.0, 3.0], [0])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], level=95.0)
    with pytest.raises(ConfigError, match="domain"):
        t_quantile(0.975, 0)


def test_a_tie_counts_one_half_and_shares_stay_shares():
    assert preferred_share([2.0, 0.0, -0.1]).tolist() == [1.0, 0.5, 0.0]
    none, some, all_ = (share_interval(shares) for shares in ([0.0] * 8, [1.0, 0.0] * 5, [1.0] * 8))
    assert (all_.low, all_.high) == (pytest.approx(0.6756, abs=1e-4), 1.0)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.6756, abs=1e-4))
    assert (some.low, some.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert share_interval([0.5]).low > 0.0
