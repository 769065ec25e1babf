"""The order of a race by hand-made scores, and the tied best set by numbers worked out by hand."""

import pytest

from preftune.errors import ConfigError
from preftune.race.halving import Race, Rung, Trial, holm, models_wanted, next_trials, places, standing


def race(rates=(1.0, 2.0, 3.0, 4.0), methods=("a", "b"), tuning_seeds=(9,), seeds=(10, 11), **more) -> Race:
    return Race(rates=rates, methods=methods, tuning_seeds=tuning_seeds, seeds=seeds, **more)


def trial(method, rate, share, seed) -> Trial:
    return Trial(method=method, rate=rate, share=share, seed=seed)


def run_all(one: Race, score) -> dict[Trial, float | None]:
    """Every trial in the order asked for, scored by a function of it."""
    scores: dict[Trial, float | None] = {}
    while waiting := next_trials(one, scores):
        assert waiting[0] not in scores
        scores[waiting[0]] = score(waiting[0])
    return scores


@pytest.mark.parametrize(
    ("count", "rungs"),
    [
        (1, []),
        (2, [(2, 0.5)]),
        (3, [(3, 0.25), (2, 0.5)]),
        (4, [(4, 0.25), (2, 0.5)]),
        (5, [(5, 0.125), (3, 0.25), (2, 0.5)]),
        (8, [(8, 0.125), (4, 0.25), (2, 0.5)]),
    ],
)
def test_each_rung_has_half_the_rates_and_twice_the_budget(count, rungs):
    one = race(rates=tuple(float(k + 1) for k in range(count)))
    assert one.rungs == tuple(Rung(count=number, share=share) for number, share in rungs)
    if count > 1:
        assert race(rates=one.rates, halving=False).rungs == (Rung(count=count, share=1.0),)


def test_the_order_of_a_race():
    """Rate 3 of method a leads early, rate 2 later; the lower one goes on where two are equal."""
    one = race(methods=("a", "b"))
    waiting = next_trials(one, {})
    assert waiting == tuple(trial(m, rate, 0.25, 9) for m in "ab" for rate in (1.0, 2.0, 3.0, 4.0))
    scores = dict(zip(waiting[:4], (0.1, 0.4, 0.5, 0.4), strict=True))
    assert next_trials(one, scores)[:2] == (trial("a", 3.0, 0.5, 9), trial("a", 2.0, 0.5, 9))
    scores |= {trial("a", 3.0, 0.5, 9): 0.6, trial("a", 2.0, 0.5, 9): 0.7}
    assert next_trials(one, scores)[:2] == (trial("a", 2.0, 1.0, 10), trial("a", 2.0, 1.0, 11))
    assert standing(one, "a", scores).rate == 2.0
    done = run_all(one, lambda t: -t.rate)
    assert len(done) == one.num_trials == 2 * (4 + 2 + 2)
    assert all(t.rate == 1.0 for t in done if t.share == 1.0)
    assert all((t.share == 1.0) == (t.seed in one.seeds) for t in done)


def test_equal_rates_go_on_from_the_lower_one():
    one = race(rates=(4.0, 2.0))
    assert standing(one, "a", run_all(one, lambda t: 0.5)).rate == 2.0


def test_tuning_seeds_are_averaged():
    one = race(rates=(1.0, 2.0), tuning_seeds=(8, 9))
    table = {(1.0, 8): 0.0, (1.0, 9): 0.9, (2.0, 8): 0.5, (2.0, 9): 0.5}
    assert standing(one, "a", run_all(one, lambda t: table.get((t.rate, t.seed), 0.0))).rate == 2.0


def test_a_rate_that_fails_on_any_tuning_seed_is_out():
    one = race(rates=(1.0, 2.0), tuning_seeds=(8, 9))
    assert (
        standing(one, "a", run_all(one, lambda t: None if (t.rate, t.seed) == (2.0, 9) else t.rate)).rate
        == 1.0
    )


def test_a_method_of_which_every_rate_fails_ends_there():
    one = race()
    scores = run_all(one, lambda t: None if t.method == "a" else 1.0)
    assert standing(one, "a", scores).is_done and standing(one, "a", scores).rate is None
    assert (
        len([t for t in scores if t.method == "a"]) == 4 and len([t for t in scores if t.method == "b"]) == 8
    )


def test_models_that_may_yet_be_the_best():
    """Of a method under way its best run so far; of those that are done the best run of the leading one."""
    one = race(rates=(1.0,), methods=("a", "b", "c"), tuning_seeds=())
    scores: dict[Trial, float | None] = {trial("a", 1.0, 1.0, 10): 0.5}
    assert models_wanted(one, scores) == {trial("a", 1.0, 1.0, 10)}
    scores[trial("a", 1.0, 1.0, 11)] = 0.7
    assert models_wanted(one, scores) == {trial("a", 1.0, 1.0, 11)}
    scores[trial("b", 1.0, 1.0, 10)] = 0.9
    assert models_wanted(one, scores) == {trial("a", 1.0, 1.0, 11), trial("b", 1.0, 1.0, 10)}
    scores[trial("b", 1.0, 1.0, 11)] = 0.1  # a mean of 0.5 against 0.6
    assert models_wanted(one, scores) == {trial("a", 1.0, 1.0, 11)}
    scores |= {trial("c", 1.0, 1.0, 10): 2.0, trial("c", 1.0, 1.0, 11): None}
    assert models_wanted(one, scores) == {trial("a", 1.0, 1.0, 11)}


def test_a_difference_by_hand():
    """1, 2, 3: mean 2, standard error 1/sqrt(3); t at 97.5% with 2 degrees is 4.302653, so half the width is
    2.484138.
    """
    interval, level = holm({"x": [1.0, 2.0, 3.0]})["x"]
    assert level == pytest.approx(0.95)
    assert (interval.low, interval.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_holm_by_hand():
    """t = 1.5 sqrt(3) / 0.5 = 5.196: above 4.303 (95%), below 6.205 (97.5%), both for 2 degrees of freedom."""
    middle = [1.0, 1.5, 2.0]
    assert holm({"x": middle})["x"][0].excludes_zero
    both = holm(
        {"x": middle, "y": [-1.0, 0.0, 1.5]}
    )  # judged first, at 97.5%: not rejected, and so nothing is
    assert [both[name][0].excludes_zero for name in "xy"] == [False, False]
    assert both["x"][1] == both["y"][1] == pytest.approx(0.975)
    both = holm({"x": middle, "y": [1.0, 1.1, 1.2]})  # t = 19: rejected at 97.5%, which leaves 95% for x
    assert [both[name][0].excludes_zero for name in "xy"] == [True, True]
    assert both["y"][1] == pytest.approx(0.975) and both["x"][1] == pytest.approx(0.95)
    assert both["y"][0].low == pytest.approx(1.1 - 6.205347 * 0.1 / 3**0.5, abs=1e-5)


def test_what_is_left_stays_at_the_level_that_stopped():
    """z comes after x, which was not rejected at 1 - 0.05/3; alone at 95% it would have been."""
    x, z = [1.0, 1.5, 2.0], [1.0, 1.6, 2.2]  # t = 5.196 and 4.619
    found = holm({"z": z, "x": x, "w": [0.0, 0.0, 0.0]})
    assert [found[name][0].excludes_zero for name in "xzw"] == [False, False, False]
    assert {round(level, 6) for _, level in found.values()} == {round(1 - 0.05 / 3, 6)}


def test_places():
    """Best by mean; equal ones and those within chance are tied; a failed run takes its method out."""
    scores = {
        "low": [0.1, 0.21, 0.3],
        "best": [1.0, 1.1, 1.2],
        "same": [1.0, 1.1, 1.2],
        "near": [0.9, 1.15, 1.1],
        "bad": [2.0, None, 2.0],
        "none": [],
    }
    found = places(scores)
    assert [place.method for place in found] == ["best", "same", "near", "low", "bad", "none"]
    assert [place.tied for place in found] == [True, True, True, False, False, False]
    best, same = found[0], found[1]
    assert best.behind is None and same.behind is not None and (same.behind.low, same.behind.high) == (0, 0)
    assert best.mean is not None and best.mean.mean == pytest.approx(1.1)
    assert all(place.mean is None for place in found[4:])


def test_pairing_tells_apart_what_overlaps():
    """Seeds differ by 10, methods by 1 within each: the intervals of the means overlap, that of the
    difference is narrow.
    """
    first, second = places({"a": [1.0, 11.0, 21.1], "b": [0.0, 10.0, 20.0]})
    assert first.mean is not None and second.mean is not None and first.mean.low < second.mean.mean
    assert not second.tied


def test_all_failed():
    assert [place.tied for place in places({"a": [None, None], "b": []})] == [False, False]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (dict(seeds=(10,)), "One seed gives no interval"),
        (dict(tuning_seeds=(10,)), "A confirming seed was used for tuning"),
        (dict(methods=()), "A race has methods, each once; got none"),
        (dict(methods=("a", "a")), "A race has methods, each once; got a, a"),
        (dict(rates=()), "A learning rate is out of range"),
        (dict(rates=(1.0, 0.0)), "A learning rate is out of range"),
        (dict(rates=(1.0, 1.0)), "A learning rate is given twice"),
    ],
)
def test_mistakes(wrong, told):
    with pytest.raises(ConfigError, match=told):
        race(**wrong)
