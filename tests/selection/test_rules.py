"""Selections: hand-worked choices, closed forms for the draws, ties, and counts of all that is left out."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import ConfigError, DataError
from preftune.selection.choices import (
    ALL_EQUAL,
    BELOW,
    NO_PAIR,
    NO_REWARD,
    NOT_BEST,
    NOT_CHOSEN,
    ON_LINE,
    SINGLE,
    SMALL_GAP,
    Choice,
)
from preftune.selection.rejection import RSO, rejection_sample
from preftune.selection.rules import (
    SELECTIONS,
    AllPairs,
    BestCompletion,
    BestVsLevel,
    BestVsWorst,
    DynamicSampling,
    LabelByMean,
    LabelByThreshold,
    Rest,
    TopFraction,
    make_selection,
)

REWARDS = [[0.2, 0.9, 0.5, None], [1.0, 1.0], [None, None], [0.3], [0.1, 0.2, 0.3]]


def kept(*completions: int) -> Choice:
    return Choice(kept=completions, labels=(1,) * len(completions))


def pairs(*pairs: tuple[int, int]) -> Choice:
    return Choice(kept=tuple(sorted({k for pair in pairs for k in pair})), pairs=pairs)


def test_best_of_n():
    found = BestCompletion()(REWARDS)
    assert [found.choices[g] for g in (0, 2, 3, 4)] == [kept(1), None, kept(0), kept(2)]
    assert found.choices[1] in (kept(0), kept(1))
    assert found.dropped == {NO_REWARD: 1} and found.left_out == {NO_REWARD: 1, NOT_CHOSEN: 2 + 1 + 2}
    assert found.makes == "labels"
    assert found.counts() == {
        "groups_in": 5,
        "groups_out": 4,
        "completions_out": 4,
        "pairs_out": 0,
        "preferred_out": 4,
        "dispreferred_out": 0,
    }


def test_top_fraction_of_the_collection():
    """9 rewards, a third of them: 1.0, 1.0 and 0.9."""
    found = TopFraction(fraction=1 / 3)(REWARDS)
    assert found.choices == (kept(1), kept(0, 1), None, None, None)
    assert found.dropped == {NO_REWARD: 1, NOT_BEST: 2} and found.left_out == {NO_REWARD: 1, NOT_CHOSEN: 2}


def test_top_fraction_of_each_group():
    """Half of 3, 1 and 3 completions with a reward, rounded up: 2, 1, 2."""
    found = TopFraction(fraction=0.5, scope="group")(REWARDS)
    assert [found.choices[g] for g in (0, 2, 3, 4)] == [kept(1, 2), None, kept(0), kept(1, 2)]
    assert (
        len(TopFraction(fraction=0.1)([[float(k) for k in range(30)]]).choices[0].kept) == 3
    )  # 0.1 * 30 > 3 in floats


def test_rest_grows_its_threshold():
    rest = [Rest(thresholds=(0.2, 0.5), improve_step=step)(REWARDS) for step in (1, 2)]
    assert rest[0].choices == (kept(1, 2), kept(0, 1), None, kept(0), kept(2))  # 0.2 is not above 0.2
    assert rest[1].choices == (kept(1), kept(0, 1), None, None, None)
    assert rest[1].dropped == {NO_REWARD: 1, BELOW: 2}


def test_best_vs_worst():
    found = BestVsWorst()(REWARDS)
    assert found.choices == (pairs((1, 0)), None, None, None, pairs((2, 0)))
    assert found.dropped == {ALL_EQUAL: 1, NO_REWARD: 1, SINGLE: 1} and found.left_out == {
        NO_REWARD: 1,
        NOT_CHOSEN: 2,
    }
    wide = BestVsWorst(min_gap=0.5)(REWARDS)
    assert wide.choices == (pairs((1, 0)), None, None, None, None) and wide.dropped[SMALL_GAP] == 1


def test_best_vs_level():
    """[1, 0.7, 0.5, 0.2, 0.1] have mean 0.5 and deviation 0.329: one below is 0.171, nearest to 0.2."""
    group = [0.5, 1.0, 0.1, 0.7, 0.2, None]
    assert BestVsLevel(level=-1.0)([group]).choices == (pairs((1, 4)),)
    assert BestVsLevel(level=0.0)([group]).choices == (pairs((1, 0)),)
    assert BestVsLevel(level=-2.0)([group]).choices == (pairs((1, 2)),)
    assert BestVsLevel(level=5.0)([group]).choices == (pairs((1, 3)),)  # never the best one, nor one as good
    assert BestVsLevel(level=5.0, min_gap=0.4)([group]).choices == (pairs((1, 0)),)
    found = BestVsLevel()([[1.0, 1.0], [0.3], [None]])
    assert found.dropped == {ALL_EQUAL: 1, SINGLE: 1, NO_REWARD: 1}


def test_many_samples_leave_outliers_alone():
    """100 rewards around 0 and one at -50: the worst is the outlier, two deviations below the mean is not."""
    group = [*np.random.default_rng(0).normal(size=100), -50.0]
    target = np.mean(group) - 2 * np.std(group)
    ((_, rejected),) = BestVsLevel()([group]).choices[0].pairs
    assert group[rejected] == min(group[:100], key=lambda reward: abs(reward - target))
    ((_, worst),) = BestVsWorst()([group]).choices[0].pairs
    assert group[worst] == -50


def test_all_pairs():
    found = AllPairs(min_gap=0.35)(REWARDS)
    assert found.choices[0] == pairs((1, 0), (1, 2)) and found.choices[4] is None
    ties = AllPairs()([[1.0, 0.0, 1.0, 0.0]])
    assert set(ties.choices[0].pairs) == {(0, 1), (0, 3), (2, 1), (2, 3)}


def test_labels():
    by_threshold = LabelByThreshold(threshold=0.5)(REWARDS)
    assert by_threshold.choices == (
        Choice(kept=(0, 1), labels=(-1, 1)),
        kept(0, 1),
        None,
        Choice(kept=(0,), labels=(-1,)),
        Choice(kept=(0, 1, 2), labels=(-1, -1, -1)),
    )
    assert by_threshold.left_out == {NO_REWARD: 1, ON_LINE: 1}
    by_mean = LabelByMean()(REWARDS)  # means 0.5333 and 0.2; the mean of 0.1, 0.2, 0.3 is not 0.2 in floats
    assert by_mean.choices == (
        Choice(kept=(0, 1, 2), labels=(-1, 1, -1)),
        None,
        None,
        None,
        Choice(kept=(0, 2), labels=(-1, 1)),
    )
    assert by_mean.dropped == {ALL_EQUAL: 1, NO_REWARD: 1, SINGLE: 1}
    assert LabelByMean(min_gap=0.5)(REWARDS).dropped[SMALL_GAP] == 1


def test_dynamic_sampling():
    found = DynamicSampling()([[0.0, 1.0, None], [1.0, 1.0], [0.0, 0.0], [0.5]])
    assert found.choices == (Choice(kept=(0, 1)), None, None, None)
    assert found.dropped == {ALL_EQUAL: 2, SINGLE: 1} and found.makes == "rewards"


def test_ties_are_broken_at_random():
    """Each of three equal rewards is the best a third of the time, and groups draw apart."""
    found = BestCompletion()([[1.0, 1.0, 1.0, 0.0]] * 3000, seed=5)
    counts = Counter(choice.kept[0] for choice in found.choices)
    assert (
        set(counts) == {0, 1, 2} and chi_square(counts, {k: 1 / 3 for k in range(3)}) < 13.8
    )  # 99.9%, 2 degrees
    assert found == BestCompletion()([[1.0, 1.0, 1.0, 0.0]] * 3000, seed=5)
    assert found != BestCompletion()([[1.0, 1.0, 1.0, 0.0]] * 3000, seed=6)


def test_a_group_draws_by_its_place_alone():
    alone = RSO(num_kept=2)([[1.0] * 9] * 2, seed=3)
    more = RSO(num_kept=2)([[1.0] * 9, [0.0, 2.0, 1.0]], seed=3)
    assert alone.choices[0] == more.choices[0]


# --- rejection sampling ---


def chi_square(counts: dict, chances: dict) -> float:
    total = sum(counts.values())
    return sum((counts.get(k, 0) - total * p) ** 2 / (total * p) for k, p in chances.items())


def test_rejection_sampling_draws_from_the_tilted_policy():
    """Candidates drawn from a known pi over four texts: the accepted ones follow pi(y) exp(r / temperature) /
    Z.
    """
    pi, reward, temperature = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 0.3, 0.5, 0.8]), 0.5
    tilted = pi * np.exp(reward / temperature)
    chances = dict(enumerate(tilted / tilted.sum()))
    random, counts = np.random.default_rng(0), Counter()
    for _ in range(4000):
        texts = random.choice(4, size=64, p=pi)  # 64 candidates hold the best text but for 0.1%
        known = {k: float(reward[text]) for k, text in enumerate(texts)}
        (first,) = rejection_sample(known, temperature, 1, random)
        counts[int(texts[first])] += 1
    assert chi_square(counts, chances) < 16.3  # 99.9%, 3 degrees
    assert chi_square(counts, dict(enumerate(pi))) > 1000  # and not pi itself


def first_accepted(rewards: list[float], temperature: float) -> dict[int, float]:
    """The chance of each to be the first one accepted: all orders, worked out."""
    chances, top = dict.fromkeys(range(len(rewards)), 0.0), max(rewards)
    orders = list(permutations(range(len(rewards))))
    for order in orders:
        rest = 1.0
        for k in order:
            accept = math.exp((rewards[k] - top) / temperature)
            chances[k] += rest * accept / len(orders)
            rest *= 1 - accept
    return chances


def test_few_candidates_enumerated():
    """With r = (-T ln 2, 0) the worse one is first with chance 1/2 and then accepted with 1/2: a quarter in
    all.
    """
    temperature = 0.7
    rewards = [-temperature * math.log(2), 0.0]
    assert first_accepted(rewards, temperature) == pytest.approx({0: 0.25, 1: 0.75})
    rewards = [0.1, 0.6, 0.4]
    random = np.random.default_rng(1)
    counts = Counter(
        rejection_sample(dict(enumerate(rewards)), temperature, 1, random)[0] for _ in range(6000)
    )
    assert chi_square(counts, first_accepted(rewards, temperature)) < 13.8


def test_the_second_pass_takes_the_best_of_what_is_left():
    """At a temperature near 0 only the maximum of each pass is accepted: best first."""
    assert rejection_sample({0: 0.1, 1: 0.9, 2: 0.5, 3: 0.7}, 1e-6, 3, np.random.default_rng(0)) == [1, 3, 2]
    assert sorted(rejection_sample({0: 0.1, 1: 0.9}, 1e-6, 5, np.random.default_rng(0))) == [0, 1]


def test_rankings():
    rewards = [[float(k) for k in range(20)]]
    first = RSO(temperature=50.0, num_kept=7, ranking="first-round")(rewards).choices[0]
    assert len(first.pairs) == 3 and len(first.kept) == 6 and all(c > r for c, r in first.pairs)
    full = RSO(temperature=50.0, num_kept=7, ranking="tournament")(rewards).choices[0]
    assert len(full.pairs) == 6 and len({r for _, r in full.pairs}) == 6  # all but the winner lose once
    assert max(full.kept) not in {r for _, r in full.pairs}
    none = RSO(temperature=50.0, num_kept=7, ranking="none")(rewards)
    assert len(none.choices[0].kept) == 7 and none.makes == "labels"
    assert RSO(num_kept=2)([[1.0] * 5]).dropped == {NO_PAIR: 1}


def test_rejection_without_rejecting_is_refused():
    with pytest.raises(ConfigError, match="none would be rejected; got num_kept 8, 3 completions at most"):
        RSO()(REWARDS)


# --- every selection ---

GROUPS = st.lists(
    st.lists(
        st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.1, 0.2, 0.3, 1.0]), st.floats(-1e6, 1e6)),
        max_size=6,
    ),
    max_size=5,
)


@pytest.mark.parametrize("name", SELECTIONS)
@given(rewards=GROUPS, seed=st.integers(0, 9))
def test_promises(name, rewards, seed):
    selection = make_selection(name, num_kept=2) if name == "rso" else make_selection(name)
    if name == "rso" and max([0, *(sum(r is not None for r in group) for group in rewards)]) <= 2:
        return
    found = selection(rewards, seed)
    assert found == selection(rewards, seed) and len(found.choices) == len(rewards)
    for group, choice in zip(rewards, found.choices, strict=True):
        if choice is None:
            continue
        assert choice.kept and list(choice.kept) == sorted(set(choice.kept))
        assert all(group[k] is not None for k in choice.kept)
        assert all(group[c] > group[r] and {c, r} <= set(choice.kept) for c, r in choice.pairs)
        assert bool(choice.pairs) == (found.makes == "pairs") and bool(choice.labels) == (
            found.makes == "labels"
        )
        assert len(choice.labels) in (0, len(choice.kept))
    stay = [group for group, choice in zip(rewards, found.choices, strict=True) if choice is not None]
    assert sum(found.dropped.values()) == len(rewards) - len(stay)
    assert sum(found.left_out.values()) == sum(map(len, stay)) - found.counts()["completions_out"]


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_reward_that_is_no_number_is_an_error(name):
    with pytest.raises(DataError, match="Completion 2 of group 1"):
        make_selection(name)([[0.0, math.nan, 1.0] * 4])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("top-fraction", {"fraction": 0.0}),
        ("top-fraction", {"fraction": 1.1}),
        ("rest", {"thresholds": []}),
        ("rest", {"thresholds": [1.0, 0.5]}),
        ("rest", {"improve_step": 7}),
        ("rest", {"improve_step": 0}),
        ("rso", {"temperature": 0.0}),
        ("rso", {"num_kept": 1}),
        ("best-vs-worst", {"min_gap": -1.0}),
        ("all-pairs", {"min_gap": math.inf}),
        ("label-by-threshold", {"threshold": math.nan}),
        ("label-by-mean", {"min_gap": math.nan}),
        ("best-of-n", {"fraction": 0.5}),
        ("best", {}),
    ],
)
def test_wrong_parameters_are_refused(name, given):
    with pytest.raises(ConfigError):
        make_selection(name, **given)


def test_a_parameter_that_is_not_given_takes_its_default():
    assert make_selection("rest", thresholds=None, improve_step=2) == Rest(improve_step=2)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        (
            "best-vs-worst",
            {"min_gap": "much"},
            "min_gap of selection 'best-vs-worst' has a value that it cannot take; got much; expected a number",
        ),
        ("rso", {"num_kept": 2.5}, "num_kept of selection 'rso' .*; got 2.5; expected a whole number"),
        ("rso", {"num_kept": True}, "num_kept of selection 'rso' .*; got True; expected a whole number"),
        ("rest", {"thresholds": 0.5}, "thresholds of selection 'rest' .*; got 0.5; expected a list"),
    ],
)
def test_parameters_of_another_kind_are_told(name, given, told):
    with pytest.raises(ConfigError, match=told):
        make_selection(name, **given)


def test_whole_numbers_and_lists_are_taken():
    assert make_selection("best-vs-worst", min_gap=2) == BestVsWorst(min_gap=2.0)
    assert make_selection("rest", thresholds=[0.0, 0.5]) == make_selection("rest", thresholds=(0.0, 0.5))
