"""Which pairs, labels and rewards come of which records; what `derive` promises for any records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.signals import available_signals, derive, merge
from preftune.errors import ConfigError, DataError
from preftune.types import Record


def scored(*rewards, prompt="p", texts=None):
    return Record(
        prompt=prompt, completions=tuple(texts or (f"c{k}" for k in range(len(rewards)))), rewards=rewards
    )


def paired(*pairs, texts=("a", "b", "c"), prompt="p"):
    return Record(prompt=prompt, completions=texts, pairs=pairs)


def labeled(text, label, prompt="p"):
    return Record(prompt=prompt, completions=(text,), labels=(label,))


def test_pairs_stay_and_lose_unused_completions():
    (record,), report = derive([paired((2, 0))], "pairs")
    assert (record.completions, record.pairs) == (("a", "c"), ((1, 0),))
    assert (report.num_pairs, report.left_out) == (1, {"in no pair": 1})


def test_all_pairs_of_rewards():
    (record,), report = derive([scored(1.0, 3.0, 2.0, 2.0)], "pairs")
    assert set(record.pairs) == {(1, 0), (1, 2), (1, 3), (2, 0), (3, 0)}  # the two 2.0 are a tie
    assert report.num_pairs == 5 and record.rewards == ()


def test_best_against_worst():
    (record,), _ = derive([scored(1.0, 3.0, 2.0)], "pairs", pairing="best_worst")
    assert (record.completions, record.pairs) == (("c0", "c1"), ((1, 0),))


def test_min_gap_takes_the_gaps_that_reach_it():
    (record,), _ = derive([scored(0.0, 1.0, 1.5)], "pairs", min_gap=1.0)
    assert set(record.pairs) == {(1, 0), (2, 0)}
    _, report = derive([scored(0.0, 1.0), scored(0.0, 0.5, prompt="q")], "pairs", min_gap=1.0)
    assert report.dropped == {"largest reward gap below min_gap": 1}


def test_ties_are_dropped_and_counted():
    records, report = derive([scored(1.0, 1.0), scored(0.0, 1.0, prompt="q")], "pairs")
    assert len(records) == 1 and report.dropped == {"tie: all rewards are equal": 1}


def test_equal_texts_are_never_a_pair():
    records, report = derive(
        [scored(0.0, 1.0, texts=("same", "same")), scored(0.0, 1.0, prompt="q")], "pairs"
    )
    assert len(records) == 1 and report.dropped == {"equal texts with different rewards": 1}


def test_pairs_of_labels_join_the_rows_of_a_prompt():
    rows = [labeled("a", 1), labeled("x", -1, "q"), labeled("b", -1), labeled("c", -1)]
    (record,), report = derive(rows, "pairs")
    assert (record.completions, record.pairs) == (("a", "b", "c"), ((0, 1), (0, 2)))
    assert report.merged == 2 and report.dropped == {"only one label for the prompt": 1}


def test_a_text_with_both_labels_is_in_no_pair():
    rows = [labeled("a", 1), labeled("a", -1), labeled("b", -1), labeled("c", 1), labeled("c", 1)]
    (record,), report = derive(rows, "pairs")
    assert (record.completions, record.pairs) == (("b", "c"), ((1, 0),))
    assert report.left_out == {"in no pair": 3}


def test_labels_of_pairs_leave_contradictions_out():
    (record,), report = derive([paired((0, 1), (1, 2))], "labels")
    assert (record.completions, record.labels) == (("a", "c"), (1, -1))
    assert sum(report.left_out.values()) == 1


def test_labels_of_pairs_see_contradictions_across_rows():
    rows = [paired((0, 1), texts=("a", "b")), paired((0, 1), texts=("b", "c"))]
    (record,), _ = derive(rows, "labels")
    assert (record.completions, record.labels) == (("a", "c"), (1, -1))


def test_labels_of_rewards_are_about_the_mean():
    (record,), report = derive([scored(1.0, 2.0, 3.0)], "labels")
    assert (record.completions, record.labels) == (("c0", "c2"), (-1, 1))
    assert (report.num_preferred, report.num_dispreferred) == (1, 1)


def test_a_reward_at_the_mean_has_no_label_whatever_the_rounding():
    (record,), _ = derive([scored(0.1, 0.2, 0.3)], "labels")  # their mean in floating point is below 0.2
    assert record.completions == ("c0", "c2")


def test_labels_of_best_and_worst():
    (record,), _ = derive([scored(1.0, 5.0, 4.0)], "labels", pairing="best_worst")
    assert (record.completions, record.labels) == (("c0", "c1"), (-1, 1))


def test_rewards_of_labels_and_of_pairs():
    (record,), _ = derive([labeled("a", 1), labeled("b", -1)], "rewards")
    assert (record.completions, record.rewards) == (("a", "b"), (1.0, 0.0))
    (record,), _ = derive([paired((0, 1), (1, 2))], "rewards")
    assert (record.completions, record.rewards) == (("a", "c"), (1.0, 0.0))


def test_single_rewards_of_a_prompt_join_but_groups_do_not():
    singles = [scored(1.0, texts=("a",)), scored(0.0, texts=("b",))]
    (record,), _ = derive(singles, "rewards")
    assert record.rewards == (1.0, 0.0)
    groups, report = derive([scored(-1.0, -2.0), scored(-1.0, -2.0)], "pairs")  # ranks of two rankings
    assert [group.pairs for group in groups] == [((0, 1),), ((0, 1),)] and report.merged == 0


@pytest.mark.parametrize(
    "option", [{"pairing": "best_worst"}, {"min_gap": 0.5}, {"soft_label_temperature": 1.0}]
)
@pytest.mark.parametrize(
    ("records", "signal"),
    [
        ([paired((0, 1))], "pairs"),
        ([scored(0.0, 1.0)], "rewards"),
        ([labeled("a", 1), labeled("b", -1)], "pairs"),
    ],
)
def test_an_option_without_effect_is_an_error(records, signal, option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} has no effect"):
        derive(records, signal, **option)


def test_a_temperature_has_no_effect_on_labels():
    with pytest.raises(
        ConfigError, match="soft_label_temperature has no effect here; got labels made of rewards"
    ):
        derive([scored(0.0, 1.0)], "labels", soft_label_temperature=1.0)


def test_nothing_left_says_why_and_what_the_data_can_give():
    with pytest.raises(
        DataError, match=r"give no pairs; got 2 records: only one label.*can give: labels, rewards"
    ):
        derive([labeled("a", 1), labeled("b", 1, "q")], "pairs")
    with pytest.raises(DataError, match=r"no completions.*can give: none"):
        derive([Record(prompt="p", completions=())], "labels")
    with pytest.raises(DataError, match="no records"):
        derive([], "labels")


def soft(*probabilities, texts=("a", "b", "c"), pairs=((0, 1), (0, 2)), **known):
    return Record(prompt="p", completions=texts, pairs=pairs, probabilities=probabilities, **known)


def test_probabilities_follow_their_pairs():
    (record,), report = derive([soft(0.75, 0.5, texts=("a", "a", "c"))], "pairs")
    assert (record.completions, record.pairs, record.probabilities) == (("a", "c"), ((0, 1),), (0.5,))
    assert (report.num_pairs, report.num_soft) == (1, 1)


def test_pairs_without_a_probability_are_certain_where_others_have_one():
    rows = [soft(0.75, 0.5), paired((0, 1), prompt="q")]
    derived, report = derive(rows, "pairs")
    assert [record.probabilities for record in derived] == [(0.75, 0.5), (1.0,)]
    assert (report.num_pairs, report.num_soft) == (3, 2)
    derived, report = derive(rows[1:], "pairs")
    assert derived[0].probabilities == () and report.num_soft == 0


@pytest.mark.parametrize("signal", ["labels", "rewards"])
def test_other_signals_have_no_probabilities(signal):
    for record in derive([soft(0.75, 0.5), soft(0.25, 0.5, texts=("a", "d", "e")), paired((0, 1))], signal)[
        0
    ]:
        assert (record.pairs, record.probabilities) == ((), ())


def test_joined_records_have_one_probability_per_pair():
    rows = [soft(0.75, 0.5), paired((0, 1), texts=("d", "e"))]
    (joined,) = merge(rows, "labels")
    assert (joined.pairs, joined.probabilities) == (((0, 1), (0, 2), (3, 4)), (0.75, 0.5, 1.0))


def test_a_temperature_makes_probabilities_of_gaps():
    rows = [scored(0.0, 2.0, 1.0), paired((0, 1), prompt="q")]
    derived, report = derive(rows, "pairs", soft_label_temperature=2.0)
    assert dict(zip(derived[0].pairs, derived[0].probabilities, strict=True)) == pytest.approx(
        {
            (1, 0): 0.7310585786,
            (1, 2): 0.6224593312,
            (2, 0): 0.6224593312,
        }  # 1 / (1 + e^-1) and 1 / (1 + e^-0.5)
    )
    assert derived[1].probabilities == (1.0,) and report.num_soft == 3
    (best,), _ = derive(rows[:1], "pairs", pairing="best_worst", soft_label_temperature=2.0)
    assert best.probabilities == pytest.approx((0.7310585786,))
    (cold,), _ = derive(rows[:1], "pairs", min_gap=2.0, soft_label_temperature=1e-300)
    assert cold.probabilities == (1.0,)


def written(sources, texts=("a", "b", "c", "d"), **known):
    return Record(prompt="p", completions=texts, sources=sources, **known)


MIXED = ("data", "policy", "data", "policy")


def test_hybrid_keeps_pairs_and_samples_of_the_policy():
    (record,), report = derive([written(("data", "policy", "data", "reference"), pairs=((2, 0),))], "hybrid")
    assert (record.completions, record.pairs, record.sources) == (
        ("a", "b", "c"),
        ((2, 0),),
        ("data", "policy", "data"),
    )
    assert (report.num_pairs, report.num_samples) == (1, 1)
    assert report.left_out == {"in no pair, and not the policy's": 1}


def test_samples_alone_are_hybrid_too_and_nothing_is_dropped():
    rows = [
        written(MIXED, pairs=((0, 1),)),
        written(("policy", "policy"), ("x", "y")),
        written(("data",), ("z",)),
    ]
    derived, report = derive(rows, "hybrid")
    assert [record.completions for record in derived] == [("a", "b", "d"), ("x", "y")]
    assert [record.sources for record in derived] == [("data", "policy", "policy"), ("policy", "policy")]
    assert (derived[1].pairs, report.num_samples, report.dropped) == ((), 3, {"unlabelled completions": 1})


def test_hybrid_pairs_come_from_rewards_and_labels_as_pairs_do():
    rewarded = written(MIXED, rewards=(0.0, 1.0, 2.0, None), probabilities=())
    (record,), _ = derive([rewarded], "hybrid", pairing="best_worst")
    assert (record.completions, record.pairs, record.rewards) == (("a", "b", "c", "d"), ((2, 0),), ())
    (record,), _ = derive([rewarded], "hybrid", min_gap=2.0)
    assert record.pairs == ((2, 0),)
    with pytest.raises(ConfigError, match="soft_label_temperature has no effect here; got hybrid"):
        derive([rewarded], "hybrid", soft_label_temperature=1.0)
    rows = [
        written(("data",), ("a",), labels=(1,)),
        written(("policy", "data"), ("b", "c"), labels=(None, -1)),
    ]
    (record,), report = derive(rows, "hybrid")
    assert (record.completions, record.pairs, record.sources) == (
        ("a", "b", "c"),
        ((0, 2),),
        ("data", "policy", "data"),
    )
    assert report.merged == 1


def test_hybrid_rows_have_no_probabilities():
    (record,), report = derive([soft(0.75, 0.5, sources=("data",) * 3)], "hybrid")
    assert (record.probabilities, report.num_soft, report.num_samples) == ((), 0, 0)


def test_hybrid_needs_to_know_who_wrote_the_completions():
    rows = [
        written(MIXED, pairs=((0, 1),)),
        Record(prompt="p", completions=("a", "b"), pairs=((0, 1),), origin="f:7"),
    ]
    with pytest.raises(DataError, match=r"^f:7: .*who wrote.*no column sources.*data, policy, reference"):
        derive(rows, "hybrid")
    assert available_signals(rows) == ("pairs", "labels", "rewards")
    assert available_signals(rows[:1]) == ("pairs", "labels", "rewards", "hybrid")


@pytest.mark.parametrize("signal", ["pairs", "labels", "rewards"])
def test_other_signals_take_no_notice_of_sources(signal):
    known = {"pairs": ((0, 1),), "rewards": (1.0, 0.0, 0.5, 0.25), "labels": (1, -1, 1, 1)}
    with_sources, report = derive([written(MIXED, **known)], signal)
    assert with_sources == derive([written((), **known)], signal)[0]
    assert report.num_samples == 0


# --- for any records ---

texts = st.sampled_from(["a", "b", "c", "d"])
prompts = st.sampled_from(["p", "q"])


@st.composite
def any_fields(draw):
    """The fields of a record (records themselves are made in the tests: their type check is not for
    strategies).
    """
    completions = tuple(draw(st.lists(texts, max_size=4)))
    count = len(completions)
    kind = draw(st.sampled_from(["pairs", "labels", "rewards"]))
    if kind == "pairs":
        index = st.integers(0, count - 1)
        pair = st.tuples(index, index).filter(lambda pair: pair[0] != pair[1])
        values = draw(st.lists(pair, max_size=3)) if count > 1 else []
    else:
        number = st.sampled_from([1, -1] if kind == "labels" else [0.0, 0.1, 0.2, 0.3, 1.0])
        values = draw(st.lists(st.none() | number, min_size=count, max_size=count))
    return {"prompt": draw(prompts), "completions": completions, kind: tuple(values)}


@given(st.lists(any_fields(), max_size=5), st.sampled_from(["pairs", "labels", "rewards"]))
def test_every_record_holds_exactly_the_signal(fields, signal):
    records = [Record(**each) for each in fields]
    if signal not in available_signals(records):
        with pytest.raises(DataError):
            derive(records, signal)
        return
    derived, report = derive(records, signal)
    assert len(derived) + sum(report.dropped.values()) + report.merged == len(records)
    for record in derived:
        count = len(record.completions)
        used = {k for pair in record.pairs for k in pair}
        assert used == (set(range(count)) if signal == "pairs" else set())
        assert all(record.completions[i] != record.completions[j] for i, j in record.pairs)
        assert len(record.labels) == (count if signal == "labels" else 0)
        assert set(record.labels) <= {1, -1}
        assert len(record.rewards) == (count if signal == "rewards" else 0)
        assert None not in record.rewards
    assert report.num_pairs == sum(len(record.pairs) for record in derived)


@given(st.lists(any_fields(), max_size=5), st.sampled_from(["pairs", "labels"]))
def test_deriving_again_changes_nothing(fields, signal):
    records = [Record(**each) for each in fields]
    if signal in available_signals(records):
        derived, _ = derive(records, signal)
        assert derive(derived, signal)[0] == derived


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0, 4))
def test_pairs_of_rewards_are_all_gaps_that_count(rewards, min_gap):
    record = scored(*rewards)
    expected = {
        (i, j) for i, a in enumerate(rewards) for j, b in enumerate(rewards) if a > b and a - b >= min_gap
    }
    if not expected:
        with pytest.raises(DataError):
            derive([record], "pairs", min_gap=min_gap)
        return
    (derived,), _ = derive([record], "pairs", min_gap=min_gap)
    names = derived.completions
    assert {(names[i], names[j]) for i, j in derived.pairs} == {(f"c{i}", f"c{j}") for i, j in expected}


def test_ended_follows_its_completion():
    """Best and worst of three rewards: the middle one goes, and with it its flag; joined records keep theirs."""
    record = Record(
        prompt="p", completions=("a", "b", "c"), rewards=(0.0, 1.0, 0.5), ended=(False, True, True)
    )
    [kept], _ = derive([record], "labels", pairing="best_worst")
    assert (kept.completions, kept.labels, kept.ended) == (("a", "b"), (-1, 1), (False, True))
    one = Record(prompt="p", completions=("a",), rewards=(0.0,), ended=(False,))
    two = Record(prompt="p", completions=("b",), rewards=(1.0,))
    [joined], _ = derive([one, two], "pairs")
    assert joined.ended == (False, True)
