"""The length policy: nothing too long gets through, nothing becomes empty, everything is named."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.fit import (
    COMPLETION_CUT,
    COMPLETIONS_TOO_LONG,
    CUT_EQUAL,
    EQUAL,
    NO_ROOM,
    PROMPT_CUT,
    TOO_LONG,
    WHOLE,
    fit,
    take_completions,
)
from preftune.errors import DataError
from preftune.types import Group

BOS = 1


def ids(*values):
    return np.array(values, dtype=np.int32)


def group(prompt, *completions, **signal):
    signal = signal or {"pairs": ((0, 1),)}
    return Group(prompt=ids(*prompt), completions=tuple(ids(*c) for c in completions), origin="f:1", **signal)


LONG = group([BOS, 5, 6, 7, 8], [10, 11, 12, 2], [10, 13, 2])


def fitted(max_length, truncation, what=LONG):
    return fit(what, max_length=max_length, truncation=truncation, bos=BOS)


def test_prompt_and_longest_completion_count():
    assert fitted(9, "error").kind == WHOLE
    with pytest.raises(DataError, match=r"f:1: .*got 5 \+ 4 tokens; expected at most 8"):
        fitted(8, "error")
    assert (fitted(8, "drop").kind, fitted(8, "drop").group) == (TOO_LONG, None)


def test_cut_prompt_keeps_bos_and_the_end():
    result = fitted(7, "cut_prompt")
    assert result.kind == PROMPT_CUT and result.group.prompt.tolist() == [BOS, 7, 8]
    assert [len(c) for c in result.group.completions] == [4, 3]
    assert fitted(6, "cut_prompt").group.prompt.tolist() == [BOS, 8]
    assert fitted(5, "cut_prompt").kind == COMPLETIONS_TOO_LONG  # BOS alone would be no prompt
    without_bos = group([5, 6, 7], [10, 2], [11, 2])
    assert fitted(3, "cut_prompt", without_bos).group.prompt.tolist() == [7]
    assert fitted(2, "cut_prompt", without_bos).kind == COMPLETIONS_TOO_LONG


def test_cut_completion_cuts_both_to_the_same_cap():
    result = fitted(7, "cut_completion")
    assert result.kind == COMPLETION_CUT
    assert [c.tolist() for c in result.group.completions] == [[10, 11], [10, 13]]
    assert fitted(6, "cut_completion").kind == CUT_EQUAL  # both are [10]
    assert fitted(5, "cut_completion").kind == NO_ROOM


def test_pairs_that_stay_different_stay():
    three = group([5, 6], [10, 11, 2], [10, 12, 2], [20, 21, 2], pairs=((0, 1), (0, 2)))
    result = fitted(3, "cut_completion", three)
    assert [c.tolist() for c in result.group.completions] == [[10], [20]]
    assert result.group.pairs == ((0, 1),)


def test_probabilities_stay_with_their_pairs():
    pairs = {"pairs": ((0, 1), (0, 2), (2, 1)), "probabilities": (0.6, 0.7, 0.8)}
    three = group([5, 6], [10, 11, 2], [10, 12, 2], [20, 21, 2], **pairs)
    assert fitted(9, "drop", three).group.probabilities == (0.6, 0.7, 0.8)
    after = fitted(3, "cut_completion", three).group
    assert (after.pairs, after.probabilities) == (((0, 2), (2, 1)), (0.7, 0.8))
    assert fitted(3, "cut_completion", group([5], [10], [10], [20], **pairs)).group.probabilities == (
        0.7,
        0.8,
    )


def test_samples_stay_when_a_pair_goes():
    """Completions 0 and 1 become equal: the policy's of them stays as a sample, the data's goes."""
    known = {"sources": (0, 1, 1), "rewards": (), "labels": ()}
    three = group([5, 6], [10, 11, 2], [10, 12, 2], [20, 21, 2], pairs=((0, 1),), **known)
    after = fitted(3, "cut_completion", three).group
    assert [c.tolist() for c in after.completions] == [[10], [20]]
    assert (after.pairs, after.sources) == ((), (1, 1))
    data = replace(three, sources=(0, 0, 2))
    assert fitted(3, "cut_completion", data).kind == CUT_EQUAL


def test_some_completions_with_all_that_is_known_of_them():
    known = {
        "pairs": ((0, 1), (0, 2)),
        "probabilities": (0.6, 0.7),
        "labels": (1, -1, None),
        "rewards": (2.0, 1.0, 0.0),
    }
    some = take_completions(group([5], [10], [11], [12], sources=(0, 1, 2), **known), [0, 2], [1])
    assert [c.tolist() for c in some.completions] == [[10], [12]]
    assert (some.pairs, some.probabilities, some.labels) == (((0, 1),), (0.7,), (1, None))
    assert (some.rewards, some.sources, some.origin) == ((2.0, 0.0), (0, 2), "f:1")


@pytest.mark.parametrize(
    ("signal", "kind"),
    [
        ({"labels": (1, -1)}, CUT_EQUAL),
        ({"labels": (1, 1)}, COMPLETION_CUT),
        ({"rewards": (0.0, 1.0)}, CUT_EQUAL),
    ],
)
def test_equal_tokens_with_different_signals_are_dropped(signal, kind):
    assert fitted(3, "cut_completion", group([5, 6], [10, 11], [10, 12], **signal)).kind == kind


def test_equal_tokens_are_no_preference_even_uncut():
    assert fitted(99, "error", group([5], [10, 2], [10, 2])).kind == EQUAL


def test_a_prompt_without_completions_leaves_room_for_a_token():
    alone = group([5, 6, 7], labels=())
    assert fitted(4, "drop", alone).kind == WHOLE
    assert fitted(3, "drop", alone).kind == TOO_LONG
    assert fitted(3, "cut_completion", alone).kind == NO_ROOM
    assert fitted(3, "cut_prompt", alone).group.prompt.tolist() == [6, 7]


tokens = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(tokens, tokens, tokens, st.integers(2, 12), st.sampled_from(["drop", "cut_prompt", "cut_completion"]))
def test_whatever_comes_through_fits_and_is_not_empty(prompt, chosen, rejected, max_length, truncation):
    before = group(prompt, chosen, rejected)
    after = fitted(max_length, truncation, before).group
    if after is None:
        return
    assert len(after.prompt) >= 1 and all(len(c) >= 1 for c in after.completions)
    longest = max(len(c) for c in after.completions)
    assert len(after.prompt) + longest <= max_length
    assert after.completions[0].tolist() != after.completions[1].tolist()
    if truncation == "cut_prompt":
        assert [c.tolist() for c in after.completions] == [chosen, rejected]
    if truncation == "cut_completion":
        assert after.prompt.tolist() == prompt
        assert [c.tolist() for c in after.completions] == [chosen[:longest], rejected[:longest]]
