"""A comparison names the better run or states that none is; a run that became worse is not called healthy."""

import json

import numpy as np
import pytest
import yaml

from preftune.report import write_comparison, write_report
from preftune.report.health import health
from preftune.report.read import read_run
from preftune.report.verdict import comparison_verdict
from preftune.stats import Interval, share_difference, share_interval

from .runs import build_run, write_lines


def with_accuracy(folder, last, held_out=None, seed=0, samples=False):
    """A run whose held-out accuracy begins at one half."""
    build_run(folder, seed=seed)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["phase"] == "eval"]
    for row in rows:
        if row["phase"] == "eval":
            row["eval_rewards/accuracies"] = 0.5 if row["step"] == 0 else last
            row["eval_loss"] = 0.6 - 0.001 * row["step"]
    assert steps[0] == 0
    write_lines(folder / "metrics.jsonl", rows)
    if not samples:
        (folder / "samples.jsonl").unlink()
    if held_out is not None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["environment"]["held_out"] = held_out
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def verdict(*folders):
    return comparison_verdict([read_run(one) for one in folders], [one.name for one in folders])


@pytest.mark.parametrize(
    ("count", "words"),
    [(100, "better is better than worse"), (10, "cannot be distinguished"), (None, "without an interval")],
)
def test_accuracies_decide_when_there_are_enough_pairs(count, words, tmp_path):
    worse, better = (
        with_accuracy(tmp_path / name, last, count) for name, last in (("worse", 0.6), ("better", 0.9))
    )
    told = verdict(worse, better)
    assert words in told and "90% against 60%" in told
    page = write_comparison([worse, better], tmp_path / "page.html").read_text(encoding="utf-8")
    assert words in page


def test_other_held_out_pairs_do_not_compare(tmp_path):
    runs = [with_accuracy(tmp_path / str(seed), 0.5 + seed / 4, 100, seed) for seed in (0, 1)]
    assert "held out different pairs, because seed differs" in verdict(*runs)


def test_rewards_of_the_same_prompts_come_first(tmp_path):
    slow, fast = (build_run(tmp_path / name, speed=speed) for name, speed in (("slow", 0.1), ("fast", 2.0)))
    assert verdict(slow, fast).startswith("fast is better than slow, the next best: mean reward ")
    assert (
        verdict(slow, build_run(tmp_path / "twin", speed=0.1, seed=0)).count("cannot be distinguished") == 1
    )


def test_difference_of_shares_by_newcombe():
    """Newcombe 1998, table II, row (a): 56/70 - 48/80 by method 10."""
    first = share_interval(np.repeat([1.0, 0.0], [56, 14]))
    second = share_interval(np.repeat([1.0, 0.0], [48, 32]))
    found = share_difference(first, second)
    assert (round(found.low, 4), round(found.mean, 4), round(found.high, 4)) == (0.0524, 0.2, 0.3339)
    assert isinstance(found, Interval) and found.num == 70


def test_a_run_that_became_worse_is_not_healthy(tmp_path):
    folder = with_accuracy(tmp_path / "run", 0.25, 8)
    found = health(read_run(folder))
    assert found is not None
    assert "The run became worse: the held-out accuracy fell from 50% to 25%." in found.summary
    assert "no problems" not in found.summary
    assert found.next.startswith("Next: train again with --")
    html = write_report(folder).read_text(encoding="utf-8")
    assert found.next in html and "95% interval 7% to 59%, 8 held-out prompts" in html


def test_too_little_is_not_healthy(tmp_path):
    folder = with_accuracy(tmp_path / "run", 0.75)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "phase", "loss", "grad_norm", "eval_loss")
    write_lines(folder / "metrics.jsonl", [{key: row[key] for key in kept if key in row} for row in rows])
    found = health(read_run(folder))
    assert found is not None and found.fine and not found.findings
    assert found.summary.endswith("too few to call the run healthy.")
    assert "--eval_fraction" in found.next


def test_a_run_without_answers_names_the_command(tmp_path):
    folder = with_accuracy(tmp_path / "run", 0.75, 8)
    assert f"preftune report {folder} --answers 8" in write_report(folder).read_text(encoding="utf-8")
