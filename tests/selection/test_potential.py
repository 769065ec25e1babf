"""Alignment potential: the margin of the reward less that of the policy."""

import pytest

from preftune.errors import DataError
from preftune.selection.apply import apply
from preftune.selection.potential import LOW_POTENTIAL, keep_potential
from preftune.selection.rules import AllPairs, BestVsWorst
from preftune.types import Record


def record(rewards, implicit, name="p") -> Record:
    texts = tuple(f"{name}{k}" for k in range(len(rewards)))
    return Record(
        prompt=name, completions=texts, rewards=rewards, columns={"implicit": implicit}, origin=f"f:{name}"
    )


def test_the_share_with_the_largest_potential_stays():
    """Margins of 2, 2 and 1 less implicit margins of 3, 0 and -1.5: potentials of -1, 2 and 2.5."""
    records = [
        record((0.0, 1.0, 2.0), [0.0, 9.0, 3.0], "a"),
        record((2.0, None, 0.0), [1.0, None, 1.0], "b"),
        record((0.0, 1.0), [2.0, 0.5], "c"),
    ]
    kept, found = keep_potential(*apply(BestVsWorst(), records), "implicit", 0.6)
    assert [one.prompt for one in kept] == ["b", "c"]
    assert found.choices[0] is None and found.dropped == {LOW_POTENTIAL: 1}
    assert kept[0].completions == ("b0", "b2") and kept[0].pairs == ((0, 1),)
    one, _ = keep_potential(*apply(BestVsWorst(), records), "implicit", 0.01)
    assert [record.prompt for record in one] == ["c"]


def test_pairs_of_a_prompt_go_one_by_one():
    """Potentials: (2,0): 2 - 0; (2,1): 1 - 5; (1,0): 1 + 5."""
    kept, found = keep_potential(
        *apply(AllPairs(), [record((0.0, 1.0, 2.0), [5.0, 0.0, 5.0])]), "implicit", 0.3
    )
    assert kept[0].completions == ("p0", "p1") and kept[0].pairs == ((1, 0),)
    assert kept[0].rewards == (0.0, 1.0) and found.left_out == {LOW_POTENTIAL: 1}
    assert found.counts()["pairs_out"] == 1


@pytest.mark.parametrize("implicit", [[1.0], [1.0, None], "text"])
def test_a_column_that_does_not_fit(implicit):
    with pytest.raises(DataError, match="does not fit the completions"):
        keep_potential(*apply(BestVsWorst(), [record((0.0, 1.0), implicit)]), "implicit", 0.5)
