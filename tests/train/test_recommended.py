"""A setting far outside what an objective's page recommends is told before training."""

import re
from pathlib import Path

import pytest

from preftune.objectives import OBJECTIVES
from preftune.train.optim import OptimOptions
from preftune.train.recommended import unusual_settings


@pytest.mark.parametrize(
    ("name", "settings", "rate", "rank", "expected"),
    [
        ("dpo", {}, 1e-6, 0, []),
        ("dpo", {}, 1e-4, 16, []),
        ("bnf", {}, 1e-4, 16, []),
        ("dpo", {}, 1e-2, 16, ["learning rate 0.01 is far above the usual 3e-06 to 1e-05 for adapters"]),
        ("dpo", {}, 1e-3, 0, ["learning rate 0.001 is far above the usual 3e-07 to 1e-06 for all weights"]),
        (
            "simpo",
            {},
            1e-4,
            0,
            ["learning rate 0.0001 is far above the usual 3e-07 to 1e-06 for all weights"],
        ),
        ("dpo", {}, 1e-10, 0, ["learning rate 1e-10 is far below the usual"]),
        ("simpo", {"beta": 0.1}, 1e-6, 0, ["beta 0.1 is far below the recommended 2"]),
        ("dpo", {"beta": 5.0}, 1e-6, 0, ["beta 5 is far above the recommended 0.1"]),
        ("dpo", {"beta": 0.01}, 0.0, 0, []),
        ("sft", {}, 1e-5, 0, []),
    ],
)
def test_what_is_unusual(name, settings, rate, rank, expected):
    lines = unusual_settings(OBJECTIVES[name](**settings), OptimOptions(learning_rate=rate), rank)
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start) and line.endswith(f"see: preftune objectives {name}")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_defaults_are_usual(name):
    objective = OBJECTIVES[name]
    low, high = objective.learning_rates
    assert 0 < low <= high < 1
    if not any(
        True
        for option in objective.__dataclass_fields__.values()
        if option.default.__class__.__name__ == "_MISSING_TYPE"
    ):
        assert unusual_settings(objective(), OptimOptions(), 0) == []


def test_the_page_names_the_ranges_of_the_objectives():
    """Each row of the table is the range of the class, and every range of its own has a row."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([0-9e-]+(?: to [0-9e-]+)?) \|", text, re.MULTILINE))
    ranges = {
        name: tuple(map(float, rates.split(" to "))) for name, rates in rows.items() if name in OBJECTIVES
    }
    assert {name: (one[0], one[-1]) for name, one in ranges.items()} == {
        name: kind.learning_rates for name, kind in OBJECTIVES.items() if "learning_rates" in vars(kind)
    }
