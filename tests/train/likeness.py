"""What runs of several processes learn from, and whether two runs came to the same."""

from pathlib import Path

import pytest

from tests.folders import PAIRS, metric_rows, timeless, weights_of, write_rows

TASTE = """
def taste(prompts, completions, **columns):
    return [float(sum(map(c.count, "aeiou"))) for c in completions]
"""
COMMON = (
    "--batch_size 4 --learning_rate 1e-3 --schedule constant --warmup_ratio 0 --eval_fraction 0.25 "
    "--micro_batch_tokens 120"
)


def write_files(folder: Path) -> Path:
    """pairs.jsonl, and the reward taste.py:taste."""
    write_rows(
        folder / "pairs.jsonl", [{**row, "prompt": f"{row['prompt']} {k}"} for k in range(2) for row in PAIRS]
    )
    (folder / "taste.py").write_text(TASTE)
    return folder


def same(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    """The files of final/, its weights, and every number of the log."""
    assert {path.name for path in (one / "final").iterdir()} == {
        path.name for path in (two / "final").iterdir()
    }
    ours, theirs = weights_of(one / "final"), weights_of(two / "final")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < tolerance
    for mine, other in zip(timeless(metric_rows(one)), timeless(metric_rows(two)), strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {
            "packing",
            *(name for name in mine if "accurac" in name and mine["step"] < 2),
        }:  # ties
            assert mine[name] == other[name] or mine[name] == pytest.approx(
                other[name], rel=1e-3, abs=1e-5
            ), (name, mine["step"])
