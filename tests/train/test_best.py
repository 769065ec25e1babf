"""The best weights of a run are kept, training stops when nothing improves, and a resumed run does the same."""

import json
import math
import os
import signal
import sys

import pytest
import torch

from preftune.cli.settings import settings_from_run
from preftune.errors import ConfigError, StorageError
from preftune.model.adapters import LoraOptions
from preftune.report.read import read_run
from preftune.report.summary import facts
from preftune.train.best import BestMetric, BestWeights
from preftune.train.loop import resume, train
from preftune.train.options import TrainConfig
from preftune.train.processes import ALONE
from tests.folders import metric_rows, same_bits, tiny_config, weights_of


def best_of(rows, metric, sign):
    """(step, value) of the first best evaluation."""
    rows = [row for row in rows if row["phase"] == "eval"]
    return max((sign * row[metric], -row["step"]) for row in rows)


@pytest.mark.parametrize("lora", [0, 2])
def test_final_holds_the_best_weights(lora, tiny_folder, pairs_file, tmp_path):
    """The first evaluation with the highest accuracy is neither the start nor the end."""
    words = dict(
        epochs=12.0,
        eval_every=2,
        optim={"learning_rate": 3e-2, "warmup_ratio": 0.0},
        lora=LoraOptions(rank=lora),
    )
    result = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "run", keep_best="rewards/accuracies", **words),
        quiet=True,
    )
    value, step = best_of(metric_rows(result.folder), "eval_rewards/accuracies", 1)
    kept = json.loads((result.folder / "best.json").read_text())
    assert kept == {"metric": "rewards/accuracies", "value": value, "step": -step}
    assert 0 < -step < result.step  # or this test shows nothing
    short = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "short", **words | {"max_steps": -step}), quiet=True
    )
    assert same_bits(weights_of(result.final), weights_of(short.final))
    assert not (result.folder / "best").exists()
    shown = dict(facts(read_run(result.folder)))
    assert shown["best weights"].startswith(f"step {-step}, rewards/accuracies 1")


def interrupted_at(step, config):
    """The run stops after this step, as by Ctrl-C."""
    calls = 0

    def profile(frame, event, argument):
        nonlocal calls
        if (
            event == "call"
            and frame.f_code.co_name == "run_step"
            and frame.f_code.co_filename.endswith("step.py")
        ):
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGINT)

    sys.setprofile(profile)
    try:
        return train(config, quiet=True)
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("at", [3, 7])
def test_a_stopped_run_is_resumed_bit_for_bit(at, tiny_folder, pairs_file, tmp_path):
    """Patience and best weights come from the checkpoint, before and after the best evaluation."""
    words = dict(
        epochs=12.0,
        eval_every=2,
        optim={"learning_rate": 3e-2},
        keep_best="rewards/accuracies",
        early_stopping_patience=4,
    )
    whole = train(tiny_config(tiny_folder, pairs_file, tmp_path / "whole", **words), quiet=True)
    assert whole.state == "finished" and whole.step < 24
    stopped = interrupted_at(at, tiny_config(tiny_folder, pairs_file, tmp_path / "parts", **words))
    assert (stopped.state, stopped.step) == ("interrupted", at)
    result = resume(settings_from_run(TrainConfig, stopped.folder), quiet=True)
    assert result.step == whole.step
    assert same_bits(weights_of(result.final), weights_of(whole.final))
    assert (whole.folder / "best.json").read_text() == (result.folder / "best.json").read_text()


def keeper(folder, patience=None, sign=1):
    metric = BestMetric(name="reward", sign=sign)
    return BestWeights(metric=metric, patience=patience, folder=folder, checkpoints=1, processes=ALONE)


class Weights:
    """What BestWeights needs of a policy."""

    def __init__(self, value):
        self.weight = torch.nn.Parameter(torch.tensor([value]))

    def trainable(self):
        return {"w": self.weight}


def test_patience_counts_evaluations_without_a_better_one(tmp_path):
    best = keeper(tmp_path / "best", patience=2)
    for step, value in ((0, 1.0), (4, 2.0), (8, 2.0), (12, math.nan)):
        assert not best.exhausted
        best.see(step, {"reward": value}, Weights(float(step)))
    assert best.exhausted and (best.step, best.value) == (4, 2.0)
    best.see(12, {"reward": 9.0}, Weights(12.0))  # seen before: a resumed run repeats it
    assert best.step == 4
    policy = Weights(12.0)
    best.put_back(policy)
    assert policy.weight.item() == 4.0
    best.clear()
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(("patience", "words"), [(1, "1 evaluation"), (2, "2 evaluations")])
def test_the_last_line_counts_the_evaluations(patience, words, tmp_path):
    best = keeper(tmp_path / "best", patience=patience)
    for step in range(patience + 1):
        best.see(step, {"reward": 1.0 - step}, Weights(float(step)))
    assert (
        best.line == f"kept the weights of step 0: held-out reward 1.0000, and {words} brought nothing better"
    )


def test_the_file_that_a_checkpoint_needs_stays(tmp_path):
    best = keeper(tmp_path / "best", sign=-1)
    best.see(0, {"reward": 3.0}, Weights(0.0))
    best.see(1, {"reward": 2.0}, Weights(1.0))
    saved = best.state()
    best.see(2, {"reward": 1.0}, Weights(2.0))
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert names == {"step-000001.safetensors", "step-000002.safetensors"}
    again = keeper(tmp_path / "best", sign=-1)
    again.load(saved)
    policy = Weights(9.0)
    again.put_back(policy)
    assert (again.step, again.value, policy.weight.item()) == (1, 2.0, 1.0)
    best.clear()
    with pytest.raises(StorageError, match="best weights of the run are gone"):
        again.load(saved)


@pytest.mark.parametrize(
    ("text", "name", "sign"),
    [
        ("eval_loss", "loss", -1),
        ("rewards/accuracies", "rewards/accuracies", 1),
        ("max:entropy", "entropy", 1),
        ("min:reward", "reward", -1),
        (True, "loss", -1),
        ("true", "loss", -1),
    ],
)
def test_directions(text, name, sign):
    assert BestMetric.of(text, "loss") == BestMetric(name=name, sign=sign)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            dict(keep_best="entropy"),
            r"direction is not known; got entropy; .* Write max:entropy or min:entropy",
        ),
        (dict(early_stopping_patience=2), "early_stopping_patience has no effect without keep_best"),
        (dict(keep_best="loss", eval_fraction=0.0), "keep_best has no effect without held-out data"),
        (dict(keep_best="loss", early_stopping_patience=0), "early_stopping_patience is out of range"),
    ],
)
def test_refusals(words, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config("m", "d", "o", **words)


def test_a_metric_that_is_not_there_is_refused_before_the_first_step(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", keep_best="max:reward/std")
    with pytest.raises(
        ConfigError, match=r"no metric of this run's evaluations; got reward/std; expected .*loss"
    ):
        train(config, quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
