"""A run ends at the last step that its budget has room for, is measured there, and its schedule knows of it."""

import json
from dataclasses import replace

import pytest

from preftune.errors import ConfigError
from preftune.objectives.rloo import RLOO
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions
from preftune.train.budget import STEPS_UNTIMED, Budget, resolved_steps
from preftune.train.checkpoint import Counters
from preftune.train.loop import train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.setup import build_job
from preftune.train.sources import OfflineSource
from tests.folders import metric_rows, tiny_config, write_rows


def own_samples(tiny_folder, tmp_path, name="run", collect=None, **settings):
    """Two of six prompts a step, of four completions each: eight completions."""
    taste = "def taste(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    (tmp_path / "taste.py").write_text(taste)
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {k}."} for k in range(8)])
    return tiny_config(
        tiny_folder,
        data,
        tmp_path / name,
        source="on-policy",
        reward=f"{tmp_path / 'taste.py'}:taste",
        objective=RLOO(),
        sampling=SampleOptions(num_completions=4, max_new_tokens=4),
        collect=collect or CollectOptions(),
        **{"batch_size": 2, "epochs": 100.0, "eval_fraction": 0.25} | settings,
    )


@pytest.mark.parametrize(
    ("collect", "samples", "steps", "drawn"),
    [
        ({}, 24, 3, 24),
        ({}, 31, 3, 24),  # a fourth draw would pass it
        ({"prompts": 4}, 40, 5, 40),  # 16 for two steps, the 8 left of a pass for one, 16 for two
        ({"prompts": 4}, 39, 3, 24),
        ({"epochs": 2}, 16, 4, 16),
        ({"lag": 1}, 24, 2, 24),  # the first step draws two collections
    ],
)
def test_samples(collect, samples, steps, drawn, tiny_folder, tmp_path):
    config = own_samples(
        tiny_folder,
        tmp_path,
        collect=CollectOptions(**collect),
        max_samples=samples,
        optim={"schedule": "linear", "warmup_ratio": 0.0, "learning_rate": 1e-3},
    )
    run = train(config, quiet=True)
    rows = metric_rows(run.folder)
    trained = [row for row in rows if row["phase"] == "train"]
    assert (run.step, run.state, trained[-1]["samples_drawn"]) == (steps, "finished", drawn)
    assert rows[-1]["phase"] == "eval" and rows[-1]["step"] == steps
    assert [row["learning_rate"] for row in trained] == pytest.approx(
        [1e-3 * (1 - k / steps) for k in range(steps)]
    )


def test_minutes_by_hand():
    budget = Budget(steps=1000, minutes=0.5)
    assert budget.planned(Counters()) == STEPS_UNTIMED
    assert budget.planned(Counters(step=4, seconds=8.0)) == 15  # 30 seconds at 2 a step
    assert Budget(steps=9, minutes=0.5).planned(Counters(step=4, seconds=8.0)) == 9
    assert budget.has_room(Counters(step=14, seconds=28.0), 0)
    assert not budget.has_room(Counters(step=14, seconds=28.1), 0)  # a fifteenth would end at 30.1
    assert Budget(steps=9).planned(Counters(step=4, seconds=8.0)) == 9


@pytest.mark.parametrize(
    ("epochs", "max_steps", "multiple", "expected"),
    [
        (1.0, None, 1, 5),
        (0.4, None, 1, 2),
        (0.01, None, 1, 1),
        (2.5, None, 2, 12),
        (1.0, 13, 1, 13),
        (9.0, 2, 1, 2),
    ],
)
def test_steps_win_over_epochs(epochs, max_steps, multiple, expected):
    assert resolved_steps(5, epochs, max_steps, multiple) == expected


def test_the_line_before_the_first_step():
    assert Budget(steps=12).line(5) == "12 steps: 2.4 epochs of 5"
    line = Budget(steps=5, samples=64, minutes=1.5).line(5)
    assert line == "5 steps: 1 epochs of 5, or 64 completions or 1.5 minutes if that comes first"


@pytest.mark.parametrize("source", ["offline", "on-policy"])
def test_more_steps_than_the_data_have(source, tiny_folder, pairs_file, tmp_path, capsys):
    """Six training prompts at two a step: every epoch takes them all, in another order."""
    config = (
        own_samples(tiny_folder, tmp_path, max_steps=5)
        if source == "on-policy"
        else tiny_config(tiny_folder, pairs_file, tmp_path / "run", batch_size=2, max_steps=5)
    )
    config = replace(config, epochs=1.0)
    job = build_job(config, Reporter(quiet=True))
    assert (job.source.steps_per_epoch, job.num_steps) == (3, 5)
    run = train(config)
    assert run.step == 5 and "5 steps: 1.667 epochs of 3" in " ".join(capsys.readouterr().err.split())
    epochs = [row["epoch"] for row in metric_rows(run.folder) if row["phase"] == "train"]
    assert epochs == pytest.approx([k / 3 for k in range(1, 6)], abs=1e-6)
    if isinstance(job.source, OfflineSource):
        orders = [[g.origin for k in range(3) for g in job.source.take(first + k)] for first in (1, 4)]
        assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_minutes(tiny_folder, pairs_file, tmp_path):
    """The clock is that of the steps: it stops well before the thousands of steps that the epochs ask for."""
    run = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "run", max_minutes=0.005, epochs=1e4), quiet=True
    )
    rows = metric_rows(run.folder)
    seconds = [row["step_time"] for row in rows if row["phase"] == "train"]
    assert run.state == "finished" and len(seconds) == run.step and rows[-1]["step"] == run.step
    before = sum(
        seconds[:-1]
    )  # the last step was to fit at the mean of these, and another would not have fitted
    assert run.step == 1 or before * run.step / (run.step - 1) <= 0.3 * (1 + 1e-9)
    assert sum(seconds) * (1 + 1 / run.step) > 0.3
    assert json.loads((run.folder / "status.json").read_text())["step"] == run.step


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (dict(max_samples=7), "max_samples does not reach to the first step"),
        (dict(max_samples=15, collect=CollectOptions(lag=1)), "max_samples does not reach to the first step"),
        (
            dict(max_samples=64, collect=CollectOptions(fill=True)),
            "collect.fill draws until a collection is full",
        ),
        (dict(max_minutes=0.0), "max_minutes is out of range"),
    ],
)
def test_mistakes(settings, told, tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match=told):
        own_samples(tiny_folder, tmp_path, **settings)


def test_offline_draws_nothing(tiny_folder, pairs_file, tmp_path):
    with pytest.raises(ConfigError, match="max_samples has no effect offline"):
        tiny_config(tiny_folder, pairs_file, tmp_path / "run", max_samples=64)
