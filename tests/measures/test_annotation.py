"""Pairs to ask about against values worked out by hand."""

import math

import pytest

from preftune.measures.annotation import (
    closest_pair,
    different_pairs,
    disputed_pair,
    telling_pair,
    within_budget,
)


def test_equal_texts_are_never_compared():
    assert different_pairs(["a", "b", "a", "c"]) == [(0, 1), (0, 3), (1, 3)]
    assert different_pairs(["a", "a"]) == []


def test_the_closest_pair():
    pairs = different_pairs("abcd")
    found = closest_pair([0.0, 1.0, 1.4, None], pairs)
    assert found is not None and (found.first, found.second) == (1, 2)
    assert found.value == pytest.approx(-0.4)
    assert closest_pair([1.0, None, None, None], pairs) is None


def test_the_disputed_pair():
    """Of completions 0 and 2 the members think sigma(2) and sigma(-2), which are 0.3808 to each side of 1/2."""
    members = {"one": [2.0, 0.5, 0.0], "two": [0.0, 0.2, 2.0], "none": [None, None, None]}
    found = disputed_pair(members, different_pairs("abc"))
    assert found is not None and (found.first, found.second) == (0, 2)
    assert found.value == pytest.approx(1 / (1 + math.exp(-2)) - 0.5)
    assert disputed_pair({"one": [1.0, 2.0]}, [(0, 1)]) is None


def test_the_telling_pair():
    """u(0, 1) = 2 * 2 / 6, u(0, 2) = u(1, 2) = 0: mean likeness 5/9, 5/9 and 1/3.

    With weight 1: pair (0, 1) has 5/9 - 2/3, pairs with 2 have 4/9, the first of which is taken. With weight 0: 5/9.
    """
    pieces = [["a", "b", "c"], ["a", "b", "d"], ["x", "y", "z"]]
    found = telling_pair(pieces, different_pairs("abc"), 1.0)
    assert found is not None and (found.first, found.second) == (0, 2)
    assert found.value == pytest.approx(4 / 9)
    typical = telling_pair(pieces, different_pairs("abc"), 0.0)
    assert typical is not None and (typical.first, typical.second) == (0, 1)
    assert typical.value == pytest.approx(5 / 9)


def test_the_budget():
    pairs = different_pairs("ab")
    found = [
        closest_pair(rewards, pairs)
        for rewards in ([0.0, 3.0], [0.0, 1.0], [None, 1.0], [0.0, 2.0], [5.0, 4.0])
    ]
    assert within_budget(found, 3) == [1, 4, 3] and within_budget(found, 9) == [1, 4, 3, 0]
