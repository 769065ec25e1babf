"""Rows: who shares what, what a row may hold, and that every token is where it should be."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import ConfigError, DataError
from preftune.model.layout import (
    LayoutOptions,
    batch_signal,
    collate,
    group_pairs,
    pack_rows,
    segments,
    split_micro_batches,
)
from preftune.types import Group, Hybrid, Labels, Pairs, Rewards
from tests.models import random_groups


def group(prompt: list[int], *completions: list[int], **known) -> Group:
    return Group(
        prompt=np.array(prompt, dtype=np.int32),
        completions=tuple(np.array(completion, dtype=np.int32) for completion in completions),
        **known,
    )


SMALL = group([1, 2, 3], [4, 5, 9], [6, 9])


def test_a_shared_row_by_hand():
    batch = collate([SMALL], LayoutOptions(), "shared")
    assert batch.input_ids.tolist() == [
        [1, 2, 3, 4, 5, 6]
    ]  # the last token of each completion is only a target
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.group_ids.tolist() == [[0] * 6]
    assert batch.branch_ids.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert batch.predict_at.tolist() == [
        2,
        3,
        4,
        2,
        5,
    ]  # both first tokens are predicted from the prompt's end
    assert batch.targets.tolist() == [4, 5, 9, 6, 9]
    assert batch.lengths.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("sharing", "rows", "at"),
    [
        ("shared", [[1, 2, 3, 4, 5, 6, 7, 8]], [2, 5, 6, 2]),
        ("packed", [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 8, 0, 0, 0]], [2, 5, 6, 9]),
    ],
)
def test_context_is_read_and_not_predicted(sharing, rows, at):
    """4 and 7, 9 are the assistant's, 5 and 6 are not; of the other completion only 8 is scored, and 9
    dangles.
    """
    scored = (np.array([True, False, False, True, True]), np.array([True, False]))
    batch = collate(
        [group([1, 2, 3], [4, 5, 6, 7, 9], [8, 9], scored=scored)],
        LayoutOptions(micro_batch_tokens=32),
        sharing,
    )
    assert batch.input_ids.tolist() == rows
    assert batch.predict_at.tolist() == at
    assert batch.targets.tolist() == [4, 7, 9, 8]
    assert batch.lengths.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("sharing", "rows", "read"),
    [
        ("shared", [[1, 2, 3, 4, 5, 9, 6, 9]], [3, 4, 5, 6, 7]),
        ("packed", [[1, 2, 3, 4, 5, 9], [1, 2, 3, 6, 9, 0]], [3, 4, 5, 9, 10]),
    ],
)
def test_last_tokens_are_inputs_where_their_state_is_read(sharing, rows, read):
    batch = collate([SMALL], LayoutOptions(micro_batch_tokens=24), sharing, read_last=True)
    assert batch.input_ids.tolist() == rows
    assert batch.read_at is not None and batch.read_at.tolist() == read
    assert batch.input_ids.flatten()[batch.read_at].tolist() == batch.targets.tolist() == [4, 5, 9, 6, 9]
    assert batch.predict_at.tolist() == [2, 3, 4, read[3] - 1 if sharing == "packed" else 2, read[3]]


def test_of_a_trajectory_the_scored_tokens_are_read():
    scored = (np.array([True, False, False, True, True]),)
    batch = collate(
        [group([1, 2, 3], [4, 5, 6, 7, 9], scored=scored)], LayoutOptions(), "shared", read_last=True
    )
    assert (
        batch.read_at is not None
        and batch.read_at.tolist() == [3, 6, 7]
        and batch.predict_at.tolist() == [2, 5, 6]
    )


def test_an_unshared_row_by_hand():
    batch = collate([SMALL], LayoutOptions(micro_batch_tokens=36), "packed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.group_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1]]
    assert batch.predict_at.tolist() == [2, 3, 4, 7, 8]


def test_single_sequences_are_padded_at_the_end():
    batch = collate([SMALL], LayoutOptions(), "single")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 6, 0]]
    assert batch.group_ids.tolist() == [[0] * 5, [0, 0, 0, 0, -1]]
    assert batch.predict_at.tolist() == [2, 3, 4, 7, 8]
    assert (batch.num_positions, batch.num_real_positions) == (10, 9)


@given(
    seed=st.integers(0, 10_000),
    row=st.integers(1, 60),
    sharing=st.sampled_from(["flat", "shared", "packed", "single"]),
)
def test_every_token_is_predicted_from_the_one_before_it(seed, row, sharing):
    groups = random_groups(seed)
    batch = collate(groups, LayoutOptions(micro_batch_tokens=4 * row), sharing)
    flat = batch.input_ids.flatten()
    at, targets = iter(batch.predict_at.tolist()), iter(batch.targets.tolist())
    for one in groups:
        for completion in one.completions:
            before = [one.prompt[-1], *completion[:-1]]
            for previous, token in zip(before, completion, strict=True):
                assert next(targets) == token
                assert flat[next(at)] == previous
    assert next(at, None) is None
    assert batch.lengths.tolist() == [len(c) for one in groups for c in one.completions]


@given(seed=st.integers(0, 10_000), row=st.integers(1, 60), sharing=st.sampled_from(["shared", "packed"]))
def test_rows_hold_every_segment_once_and_keep_to_their_capacity(seed, row, sharing):
    found = segments(random_groups(seed), sharing)
    rows = pack_rows(found, row, sharing)
    assert sorted((s.group, s.completions) for r in rows for s in r) == sorted(
        (s.group, s.completions) for s in found
    )
    longest = max(s.num_positions for s in found)
    assert all(sum(s.num_positions for s in r) <= max(row, longest) for r in rows)


@given(seed=st.integers(0, 10_000), budget=st.integers(20, 200))
def test_micro_batches_cut_no_group_and_keep_to_the_budget(seed, budget):
    groups = random_groups(seed, num_groups=9)
    options = LayoutOptions(micro_batch_tokens=budget)
    read = split_micro_batches(groups, options, "shared", read_last=True)
    assert all(
        len(batch) == 1
        or sum(s.num_positions for s in segments([groups[i] for i in batch], "shared", True)) <= budget
        for batch in read
    )
    batches = split_micro_batches(groups, options, "shared")
    assert sorted(index for batch in batches for index in batch) == list(range(9))
    for batch in batches:
        size = sum(s.num_positions for s in segments([groups[i] for i in batch], "shared"))
        assert size <= budget or len(batch) == 1


@given(seed=st.integers(0, 10_000), budget=st.integers(1, 200))
def test_a_flat_row_holds_all_and_nothing_else(seed, budget):
    batch = collate(random_groups(seed), LayoutOptions(micro_batch_tokens=budget), "flat")
    assert len(batch.input_ids) == 1
    assert (
        batch.num_positions
        == batch.num_real_positions
        == sum(s.num_positions for s in segments(random_groups(seed), "shared"))
    )


def test_sharing_saves_the_prompt():
    long = group(list(range(3, 50)), [4, 5], [6, 7], [8, 9])
    assert segments([long], "shared")[0].num_positions == 47 + 3
    assert sum(s.num_positions for s in segments([long], "packed")) == 3 * 48


def test_signals_index_the_completions_of_all_groups():
    one = group([1], [2], [3], [4], pairs=((0, 2), (1, 2)), rewards=(0.5, 1.0, -1.0))
    two = group([1], [2], [3], pairs=((1, 0),), rewards=(0.0, 2.0))
    pairs = batch_signal([one, two], Pairs)
    assert isinstance(pairs, Pairs)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([0, 1, 4], [2, 2, 3])
    labels = batch_signal([one, two], Labels)
    assert isinstance(labels, Labels)
    assert labels.label.tolist() == [1, 1, -1, -1, 1]
    rewards = batch_signal([one, two], Rewards)
    assert isinstance(rewards, Rewards)
    assert (rewards.reward.tolist(), rewards.group.tolist()) == ([0.5, 1.0, -1.0, 0.0, 2.0], [0, 0, 0, 1, 1])


def test_probabilities_of_a_micro_batch():
    """Pairs without one are certain; none at all is None."""
    one = group([1], [2], [3], [4], pairs=((0, 2), (1, 2)), probabilities=(0.5, 0.75))
    two = group([1], [2], [3], pairs=((1, 0),))
    pairs = batch_signal([one, two], Pairs)
    assert isinstance(pairs, Pairs) and pairs.probability is not None
    assert pairs.probability.tolist() == [0.5, 0.75, 1.0]
    assert pairs.probability.dtype == torch.get_default_dtype()
    certain = batch_signal([two], Pairs)
    assert isinstance(certain, Pairs) and certain.probability is None


def test_hybrid_signals_index_the_completions_of_all_groups():
    one = group([1], [2], [3], [4], pairs=((2, 0),), sources=(0, 1, 2))
    two = group([1], [2], sources=(1,))
    three = group([1], [2], [3], pairs=((0, 1),), sources=(0, 0))
    hybrid = batch_signal([one, two, three], Hybrid)
    assert isinstance(hybrid, Hybrid)
    assert (hybrid.chosen.tolist(), hybrid.rejected.tolist()) == ([2, 4], [0, 5])
    assert hybrid.source.tolist() == [0, 1, 2, 1, 0, 0]
    samples = batch_signal([two], Hybrid)
    assert (
        isinstance(samples, Hybrid) and samples.chosen.shape == (0,) and samples.source.dtype == torch.int64
    )
    with pytest.raises(DataError, match=r"rows:3: who wrote the completions is not known"):
        batch_signal([one, group([1], [2], origin="rows:3")], Hybrid)


def test_a_micro_batch_without_room_is_refused():
    with pytest.raises(ConfigError, match="micro_batch_tokens is out of range; got 0"):
        LayoutOptions(micro_batch_tokens=0)


def test_tensors_are_int64():
    batch = collate([SMALL], LayoutOptions(), "shared", read_last=True)
    assert batch.share is not None and batch.share.dtype == torch.float32
    rest = batch.__dataclass_fields__.keys() - {"share", "rows"}
    assert all(getattr(batch, f).dtype == torch.int64 for f in rest)
    assert batch.rows == (((len(SMALL.prompt), *map(len, SMALL.completions)),),)


def test_rows_are_evenly_filled():
    """Sizes 4, 4, 2, 2 in rows of at most 6: two full rows, and not 4 + 2, 4, 2 or a row of 4 + 4."""
    groups = [group([1, 2, 3], [4, 5]), group([1, 2, 3], [4, 5]), group([1], [4, 5]), group([1], [4, 5])]
    rows = pack_rows(segments(groups, "shared"), 6, "shared")
    assert sorted(sorted(s.num_positions for s in row) for row in rows) == [[2, 4], [2, 4]]


def test_pairs_of_a_group_follow_from_what_it_knows():
    completions = ([2], [3], [4])
    assert group_pairs(group([1], *completions, pairs=((2, 0),), labels=(1, -1, 1))) == ((2, 0),)
    assert group_pairs(group([1], *completions, labels=(1, -1, 1))) == ((0, 1), (2, 1))
    assert group_pairs(group([1], *completions, rewards=(0.5, 0.5, 2.0))) == (
        (2, 0),
        (2, 1),
    )  # a tie is no preference
    assert group_pairs(group([1], *completions)) == ()
