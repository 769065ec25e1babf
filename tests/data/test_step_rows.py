"""Rows with labels of steps, in the layouts in which they are published."""

import pytest

from preftune.data.step_rows import step_rows
from preftune.errors import DataError


def test_labels_of_steps():
    [row] = step_rows({"prompt": "1+2?", "completions": ["1 + 2", "is 4"], "labels": [True, False]})
    assert row == {
        "prompt": "1+2?",
        "completions": ["1 + 2", "1 + 2\nis 4"],
        "rewards": [1.0, 0.0],
        "ended": [False, False],
    }


def test_values_of_lines():
    """Answers without values are left out; a line break belongs to the line before it."""
    rows = list(
        step_rows(
            {
                "prompt": "p",
                "completions": ["one\n\ntwo", "three", "four"],
                "rewards_steps": [[0.25, -0.5], None, [1]],
            }
        )
    )
    assert [row["completions"] for row in rows] == [["one", "one\n\ntwo"], ["four"]]
    assert [row["rewards"] for row in rows] == [[0.25, -0.5], [1.0]]


def test_math_shepherd():
    text = "Ann has 3 pens. How many? Step 1: She has 3. ки\nStep 2: So 4. ки"
    [row] = step_rows(
        {"input": text, "label": text.replace("ки", "+", 1).replace("ки", "-"), "task": "GSM8K"}
    )
    assert row["prompt"] == "Ann has 3 pens. How many?" and row["rewards"] == [1.0, 0.0]
    assert row["completions"] == ["Step 1: She has 3.", "Step 1: She has 3.\nStep 2: So 4."]
    with pytest.raises(DataError, match="in the place of each mark"):
        list(step_rows({"input": text, "label": text}))


def test_prm800k():
    """Alternatives of a step are beginnings of their own; the labels end where no step was chosen."""
    steps = [
        {"completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}], "chosen_completion": 0},
        {"completions": [{"text": "c", "rating": 0}, {"text": "d", "rating": None}], "chosen_completion": 0},
        {"completions": [{"text": "e", "rating": -1}], "chosen_completion": None},
        {"completions": [{"text": "f", "rating": 1}], "chosen_completion": 0},
    ]
    [row] = step_rows({"question": {"problem": "Q"}, "label": {"steps": steps, "finish_reason": "x"}})
    assert row["completions"] == ["a", "b", "a\nc", "a\nc\ne"] and row["rewards"] == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "no labels or values of steps"),
        ({"prompt": "p", "completions": ["a"], "labels": [True, False]}, "do not fit the steps"),
        ({"prompt": "p", "completions": ["a"], "labels": ["yes"]}, "no label"),
        ({"prompt": "p", "completions": ["a\nb"], "rewards_steps": [[1.0]]}, "do not fit the steps"),
        ({"input": "no steps", "label": "no steps"}, "no steps"),
    ],
)
def test_mistakes(row, told):
    with pytest.raises(DataError, match=told):
        list(step_rows(row))
