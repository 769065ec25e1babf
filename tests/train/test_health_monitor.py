"""A run is judged while it trains: the row, the line, the file, and the numbers that only health asks for."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from preftune.health.conditions import CONDITIONS, check_health
from preftune.health.history import history_of
from preftune.objectives.dpo import DPO
from preftune.progress import Reporter
from preftune.report.read import read_run
from preftune.sampling.sample import SampleOptions
from preftune.train import loop
from preftune.train.evaluate import length_metrics
from preftune.train.health_monitor import Watch, common_ends
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.runlog import RunFolder, to_plain
from preftune.types import Group
from tests.folders import PAIRS, metric_rows, tiny_config, write_rows


def ids(*numbers) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def test_overlap_is_counted_from_both_ends():
    def overlap(one, two):
        return common_ends([Group(prompt=ids(1), completions=(one, two), pairs=((0, 1),))])[
            "pairs/common_ends"
        ]

    assert overlap(ids(5, 6, 7, 8), ids(5, 9, 7, 8)) == 0.75
    assert overlap(ids(5, 6), ids(7, 8)) == 0.0
    assert overlap(ids(5, 6), ids(5, 6)) == 1.0
    assert overlap(ids(5, 5), ids(5, 5, 5, 5)) == 0.5  # no token is counted twice
    labeled = Group(prompt=ids(1), completions=(ids(5, 6), ids(5, 7)), labels=(1, -1))
    assert common_ends([labeled]) == {"pairs/common_ends": 0.5}
    assert common_ends([Group(prompt=ids(1), completions=(ids(5),), labels=(1,))]) == {}


def test_margins_and_lengths_against_numbers_by_hand():
    gap = torch.tensor([1.0, 2.0, 3.0, 4.0, -5.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    assert length_metrics([2 * gap[:4], 2 * gap[4:]], [gap[:4], gap[4:]]) == pytest.approx(
        {"length_correlation": 1.0, "length_bias": 0.7}
    )  # eight longer, one shorter, one equal
    assert length_metrics([-gap], [gap])["length_correlation"] == pytest.approx(-1.0)
    assert length_metrics([2 * gap[:9]], [gap[:9]]) == {}  # too few
    assert length_metrics([1e-6 * gap], [gap]) == {}  # rounding
    assert length_metrics([gap], [torch.ones(10)]) == {}


def heard(run) -> tuple[Watch, io.StringIO]:
    text = io.StringIO()
    report = Reporter(console=Console(file=text, width=400))
    return Watch(run=run, config={"objective": {"name": "bnf"}}, report=report), text


def test_a_condition_is_said_once_when_it_comes_to_a_level(tmp_path):
    run = RunFolder(path=tmp_path)
    watch, text = heard(run)

    def evaluated(step, fall):
        row = {
            "step": step,
            "phase": "eval",
            "eval_log_ratios/chosen": -fall,
            "eval_log_ratios/rejected": -fall - 9.0,
            "eval_logps/chosen": -100.0 - fall,
            "eval_logps/rejected": -109.0 - fall,
        }
        levels = {one.id: one.level for one in watch.findings(row)}
        run.append("metrics.jsonl", row)
        return levels.get("displacement"), text.getvalue().count("Displacement")

    for step in range(1, 31):
        run.append("metrics.jsonl", {"step": step, "phase": "train", "loss": -1.0})
    assert evaluated(0, 0.0) == (None, 0)  # nothing has been learned yet
    assert evaluated(10, 8.0) == ("watch", 1)
    assert evaluated(12, 9.0) == ("watch", 1)
    assert evaluated(14, 40.0) == ("act", 2)
    assert evaluated(16, 1.0) == ("ok", 2)
    assert evaluated(18, 41.0) == ("act", 2)
    assert "health: watch: Displacement: log-ratio of chosen -8.00" in text.getvalue()
    assert "Try: --learning_rate, smaller" in text.getvalue()


def test_a_healthy_run_is_told_so_in_its_rows_and_file(tiny_folder, pairs_file, tmp_path, capsys):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", epochs=10.0, objective=DPO())
    run = loop.train(config).folder
    assert "health:" not in capsys.readouterr().err
    rows = [row for row in metric_rows(run) if row["phase"] == "eval"]
    assert [name for name in rows[0] if name.startswith("health/")] == ["health/reference"]
    assert {"health/displacement", "health/overfitting", "health/learning-rate-low"} <= set(rows[-1])
    assert not any(value for row in rows for name, value in row.items() if name.startswith("health/"))
    kept = json.loads((run / "health.json").read_text())
    assert kept["level"] == "ok"
    assert {one["id"]: one["number"] for one in kept["findings"]} == {
        name.removeprefix("health/"): value for name, value in rows[-1].items() if name.startswith("health/")
    }


BROKEN = {
    "identical-pairs": dict(
        data=[
            {
                **row,
                "chosen": "It is as it is, they say, and so it is, a.",
                "rejected": "It is as it is, they say, and so it is, b.",
            }
            for row in PAIRS
        ]
    ),
    "learning-rate-high": dict(optim={"learning_rate": 0.5}),
    "learning-rate-low": dict(optim={"learning_rate": 1e-8}),
}


@pytest.mark.parametrize("condition", BROKEN)
def test_a_run_broken_on_purpose_is_told_so_once(condition, tiny_folder, pairs_file, tmp_path, capsys):
    settings = dict(BROKEN[condition])
    data = write_rows(tmp_path / "rows.jsonl", settings.pop("data")) if "data" in settings else pairs_file
    run = loop.train(tiny_config(tiny_folder, data, tmp_path / "run", epochs=10.0, **settings)).folder
    title = next(one.title for one in CONDITIONS if one.id == condition)
    told = [line for line in capsys.readouterr().err.splitlines() if f": {title}: " in line]
    assert len(told) == len({line.split(title)[0] for line in told}) >= 1  # one line for each level at most
    assert {one["id"]: one["level"] for one in json.loads((run / "health.json").read_text())["findings"]}[
        condition
    ] == "act"


def test_equal_rewards_and_lengths_are_counted_within_prompts(tiny_folder, pairs_file, tmp_path):
    (tmp_path / "taste.py").write_text(
        "def half(prompts, completions, **columns):\n"
        "    return [float(n) if 'sea' in p or 'tea' in p else 1.0 for p, n in zip(prompts, columns['num_tokens'])]\n"
    )
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        source="on-policy",
        reward=f"{tmp_path / 'taste.py'}:half",
        batch_size=8,
        sampling=SampleOptions(num_completions=8, max_new_tokens=40),
        collect=CollectOptions(),
        eval_fraction=0.0,
        max_steps=1,
    )
    run = loop.train(config, quiet=True).folder
    (row,) = metric_rows(run)
    drawn = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert row["collect/equal_rewards"] == np.mean([len(set(one["rewards"])) == 1 for one in drawn]) > 0.5
    centred = [
        (r - np.mean(one["rewards"]), n - np.mean(one["num_tokens"]))
        for one in drawn
        for r, n in zip(one["rewards"], one["num_tokens"], strict=True)
    ]
    if "collect/length_correlation" in row:
        assert row["collect/length_correlation"] == pytest.approx(np.corrcoef(np.transpose(centred))[0, 1])


def test_the_loop_and_the_page_judge_the_same_history(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", epochs=6.0)
    run = loop.train(config, quiet=True).folder
    from_rows = history_of(metric_rows(run), to_plain(config))
    files = read_run(run)
    assert from_rows == history_of(files.rows, files.config)
    assert check_health(from_rows)
