"""Helpers of coupled objectives: orders, running moments, and what a state must look like."""

import math

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.coupling import (
    check_state,
    initial_moments,
    lexicographic,
    pair_keys,
    standardized_in_fp64,
    step_scores,
    update_moments,
)
from preftune.types import Pairs, StepView
from tests.objectives.coupled import numbers


def test_ties_go_to_the_next_key_and_what_ties_in_all_stays():
    first, second = torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0]), torch.tensor([5, 9, 4, 9, 4])
    assert lexicographic(first).tolist() == [1, 3, 0, 2, 4]
    assert lexicographic(first, second).tolist() == [1, 3, 2, 4, 0]
    assert lexicographic(second, -first).tolist() == [2, 4, 0, 1, 3]


def test_keys_of_a_pair():
    pairs = Pairs(chosen=torch.tensor([2, 0]), rejected=torch.tensor([1, 3]))
    view = StepView(lengths=torch.tensor([4, 5, 6, 7]), prompt=torch.tensor([10, 11, 12, 13]), signal=pairs)
    assert [key.tolist() for key in pair_keys(view, pairs)] == [[12, 10], [6, 4], [5, 7]]
    with pytest.raises(AssertionError, match="couples"):
        step_scores(view)


def test_moments_fade_by_a_tenth_a_step():
    """Steps of mean 2 and deviation sqrt 2, then of mean 4 and 0, weigh 9 to 10; the state holds undivided
    sums.
    """
    mean, std, state = update_moments(torch.tensor([1.0, 3.0]), initial_moments())
    assert (mean.item(), std.item()) == pytest.approx((2.0, math.sqrt(2.0)), rel=1e-12)
    assert numbers(state) == {
        "mean": pytest.approx(0.2),
        "std": pytest.approx(0.1 * math.sqrt(2)),
        "steps": 1,
    }
    mean, std, later = update_moments(torch.tensor([4.0, 4.0]), state)
    assert (mean.item(), std.item()) == pytest.approx((58 / 19, 9 * math.sqrt(2) / 19), rel=1e-12)
    assert numbers(later) == {
        "mean": pytest.approx(0.58),
        "std": pytest.approx(0.09 * math.sqrt(2)),
        "steps": 2,
    }
    assert numbers(state)["steps"] == 1  # what came in is as it was
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in later.items()} == {
        "mean": (torch.float64, 0),
        "std": (torch.float64, 0),
        "steps": (torch.int64, 0),
    }


def test_a_single_value_leaves_the_deviation():
    _, std, state = update_moments(torch.tensor([4.0]), initial_moments())
    assert (std.item(), numbers(state)) == (0.0, {"mean": pytest.approx(0.4), "std": 0.0, "steps": 1})
    _, _, two = update_moments(
        torch.tensor([1.0, 3.0]), update_moments(torch.tensor([1.0, 5.0]), initial_moments())[2]
    )
    before = (9 * math.sqrt(8) + 10 * math.sqrt(2)) / 19
    mean, std, _ = update_moments(torch.tensor([4.0]), two)
    assert (mean.item(), std.item()) == pytest.approx(((8.1 * 3 + 9 * 2 + 10 * 4) / 27.1, before), rel=1e-12)


def test_values_without_a_deviation_are_all_usual():
    def number(value):
        return torch.tensor(value, dtype=torch.float64)

    assert standardized_in_fp64(torch.tensor([3.0]), number(1.0), number(4.0)).tolist() == [0.5]
    assert standardized_in_fp64(torch.tensor([0.0, 2.0]), number(0.0), number(0.0)).tolist() == [0.0, 0.0]
    assert standardized_in_fp64(torch.tensor([2.0]), number(0.0), number(9.99e-7)).tolist() == [0.0]
    assert standardized_in_fp64(torch.tensor([2.0]), number(0.0), number(1e-6)).tolist() == pytest.approx(
        [2e6]
    )


def test_a_state_has_the_names_dtypes_and_axes_of_the_initial_one():
    good = initial_moments()
    check_state("x", good, initial_moments())
    vector = torch.zeros(2, dtype=torch.float64)
    for bad in ({}, good | {"std": vector}, good | {"steps": torch.zeros(())}, good | {"u": good["std"]}):
        with pytest.raises(StorageError, match="The state of x does not fit; got "):
            check_state("x", bad, initial_moments())
    with pytest.raises(
        StorageError, match=r"got nothing; expected mean \(float64, 0 axes\), std .*, steps \(int64, 0 axes\)"
    ):
        check_state("x", {}, good)
