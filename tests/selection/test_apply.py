"""A selection applied to records and to groups of tokens: only what was chosen stays, and it stays
consistent.
"""

from dataclasses import replace

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.selection.apply import EQUAL_PAIRS, apply
from preftune.selection.rules import AllPairs, BestCompletion, BestVsWorst, DynamicSampling, LabelByMean
from preftune.types import Group, Record


def record(*texts: str, rewards, **known) -> Record:
    return Record(prompt="p", completions=texts, rewards=rewards, origin="f:1", columns={"id": 7}, **known)


def group(*ids: list[int], rewards, **known) -> Group:
    return Group(
        prompt=np.array([1, 2], dtype=np.int32),
        completions=tuple(np.array(i, dtype=np.int32) for i in ids),
        rewards=rewards,
        origin="f:1",
        **known,
    )


def test_records():
    one = record(
        "a",
        "b",
        "c",
        "d",
        rewards=(0.5, 0.1, None, 0.9),
        ended=(True, False, True, True),
        pairs=((0, 1),),
        probabilities=(0.7,),
        labels=(1, -1, None, None),
        sources=("policy", "policy", "data", "policy"),
    )
    ([best_worst], _) = apply(BestVsWorst(), [one])
    assert best_worst == replace(
        one,
        completions=("b", "d"),
        rewards=(0.1, 0.9),
        ended=(False, True),
        pairs=((1, 0),),
        probabilities=(),
        labels=(),
        sources=("policy", "policy"),
    )
    ([labeled], _) = apply(LabelByMean(), [one])
    assert labeled.completions == ("b", "d") and labeled.labels == (-1, 1) and labeled.pairs == ()


def test_groups():
    one = group(
        [3, 4],
        [5],
        [6, 7, 8],
        rewards=(0.2, None, 0.6),
        labels=(1, None, None),
        sources=(1, 1, 0),
        scored=tuple(np.array(mask) for mask in ([True, True], [True], [True, False, True])),
    )
    ([found], selected) = apply(BestVsWorst(), [one])
    assert [ids.tolist() for ids in found.completions] == [[3, 4], [6, 7, 8]] and found.pairs == ((1, 0),)
    assert found.rewards == (0.2, 0.6) and found.sources == (1, 0) and found.labels == ()
    assert found.num_scored == (2, 2) and found.origin == "f:1" and found.prompt is one.prompt
    assert selected.counts()["pairs_out"] == 1
    ([whole], _) = apply(DynamicSampling(), [one])
    assert len(whole.completions) == 2 and whole.pairs == whole.labels == ()


def test_equal_completions_are_told_apart_by_nothing():
    noisy = record("a", "a", "b", rewards=(0.9, 0.1, 0.5))
    ([pairs], _) = apply(AllPairs(), [noisy])
    assert pairs.pairs == ((0, 2), (2, 1))  # not (0, 1)
    found, selected = apply(BestVsWorst(), [noisy])
    assert found == [] and selected.choices == (None,)
    assert selected.dropped == {"only equal completions with different rewards": 1}
    odd = record("a", "a", "b", "c", rewards=(0.9, 0.1, 0.4, 0.7))
    ([labels], selected) = apply(LabelByMean(), [odd])
    assert (labels.completions, labels.labels) == (("b", "c"), (-1, 1)) and selected.left_out == {
        EQUAL_PAIRS: 2
    }
    tokens = group([3], [3], [4], rewards=(0.9, 0.1, 0.5))
    assert apply(BestVsWorst(), [tokens])[0] == []
    masks = tuple(np.array([flag, True]) for flag in (True, False))
    told = group([3, 4], [3, 4], rewards=(0.9, 0.1), scored=masks)
    assert apply(BestVsWorst(), [told])[0][0].pairs == ((0, 1),)  # they are scored at other places


def test_what_is_dropped_is_gone():
    found, selected = apply(
        BestCompletion(), [record("a", rewards=(None,)), record("b", "c", rewards=(0.0, 1.0))]
    )
    assert [one.completions for one in found] == [("c",)] and found[0].labels == (1,)
    assert selected.counts()["groups_in"] == 2 and selected.dropped == {"no reward": 1}


def test_without_rewards():
    with pytest.raises(DataError, match="f:1: the completions have no rewards; got 0 rewards; expected 2"):
        apply(BestCompletion(), [record("a", "b", rewards=())])
