"""What pairs have in common, against the textbook recursion and numbers by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import DataError
from preftune.measures.overlap import common_tokens, length_bias, overlap, pair_overlap, shared_prefix


def textbook(one, two) -> int:
    """The table of Wagner and Fischer."""
    row = [0] * (len(two) + 1)
    for a in one:
        above = row
        row = [0]
        for k, b in enumerate(two):
            row.append(above[k] + 1 if a == b else max(above[k + 1], row[k]))
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=80), st.lists(st.integers(0, 4), max_size=80))
def test_common_tokens(one, two):
    assert common_tokens(one, two) == textbook(one, two) == common_tokens(two, one)


def test_overlap_by_hand():
    assert overlap([1, 2, 3, 4], [1, 3, 9]) == pytest.approx(4 / 7)  # 1 3 in common
    assert overlap("kitten", "sitting") == pytest.approx(8 / 13)  # ittn
    assert overlap([], []) == 1 and overlap([1], []) == 0
    assert (
        shared_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
        and shared_prefix([1], [1, 2]) == 1
        and shared_prefix([], [1]) == 0
    )


def test_pair_overlap():
    near = (list(range(20)), [*range(19), 99])  # 19 of 20 in common: 0.95
    told = pair_overlap([([1, 2], [1, 2]), ([1, 2], [3, 4, 5]), near], [0, 0, 1])
    assert (
        told.overlap.mean == pytest.approx((0.5 + 0.95) / 2) and told.overlap.num == 2
    )  # a prompt's pairs first
    assert told.identical == pytest.approx(1 / 3) and told.near_identical == pytest.approx(2 / 3)
    assert told.prefix_tokens == pytest.approx((2 + 0 + 19) / 3)
    assert told.prefix_share == pytest.approx((1 + 0 + 19 / 20) / 3)
    with pytest.raises(DataError, match="no pairs"):
        pair_overlap([], [])


def test_length_bias():
    told = length_bias([5, 3, 2, 9], [1, 3, 4, 1], [0, 0, 1, 2])
    assert told.chosen_longer.mean == pytest.approx((0.75 + 0 + 1) / 3)  # prompt 0: won and equal
    assert told.difference.mean == pytest.approx((2 - 2 + 8) / 3)
    assert told.longer_wins == pytest.approx(2 / 3)
    assert length_bias([1], [1], [0]).longer_wins is None
