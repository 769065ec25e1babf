"""A run that was killed, or interrupted, ends bit for bit where it would have ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml

from preftune.cli.main import main
from preftune.cli.settings import settings_from_run
from preftune.model.adapters import LoraOptions
from preftune.model.reference import ReferenceOptions
from preftune.objectives.bco import BCO
from preftune.objectives.bnf import BNF
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.dpo import DPO
from preftune.train.loop import resume, train
from preftune.train.options import TrainConfig
from tests.folders import metric_rows, same_bits, timeless, tiny_config, weights_of


def command(*words) -> list[str]:
    return [sys.executable, "-m", "preftune.cli.main", *map(str, words)]


def started(words, environment) -> subprocess.Popen:
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_step(run) -> int:
    """The latest finished step that metrics.jsonl shows; a last line may be half there."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return -1
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((row["step"] for row in rows if row["phase"] == "train"), default=-1)


def stop_at(process, run, step, number) -> str:
    """Send a signal once the run has come by a step; its standard error."""
    deadline = time.monotonic() + 90
    while process.poll() is None and last_step(run) < step:
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.001)
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize("source", ["offline", "on-policy"])
def test_killed_and_interrupted_runs_end_bit_for_bit(
    source, tiny_folder, pairs_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    taste = tmp_path / "taste.py"
    taste.write_text(
        "def taste(prompts, completions, **columns):\n    return [float(c.count('e')) for c in completions]\n"
    )
    learning = (
        ["--objective", "dpo", "--epochs", "30"]
        if source == "offline"
        else [
            "--source",
            "on-policy",
            "--objective",
            "rloo",
            "--epochs",
            "15",
            "--reward",
            f"{taste}:taste",
            "--sampling.max_new_tokens",
            "5",
            "--sampling.num_completions",
            "2",
            "--collect.epochs",
            "2",
        ]
    )

    words = [
        "train",
        "--model",
        str(tiny_folder),
        "--data",
        pairs_file,
        *learning,
        "--batch_size",
        "4",
        "--learning_rate",
        "1e-3",
        "--eval_fraction",
        "0.25",
        "--save_every",
        "1",
        "--eval_every",
        "3",
        "--output",
    ]
    assert main([*words, str(whole)]) == 0  # 6 pairs for training: 60 steps
    stop_at(started(command(*words, cut), environment), cut, 5, signal.SIGKILL)
    first = last_step(cut)
    assert 5 <= first < 60 and not (cut / "final").exists()
    assert json.loads((cut / "status.json").read_text())["state"] == "running"

    again = started(command("train", "--resume", cut), environment)
    stop_at(again, cut, first + 7, signal.SIGKILL)
    second = last_step(cut)
    assert again.returncode == -signal.SIGKILL and first < second < 60

    again = started(command("train", "--resume", cut), environment)
    told = stop_at(again, cut, second + 4, signal.SIGINT)
    assert again.returncode == 130 and "Traceback" not in told
    assert f"preftune train --resume {cut}" in told
    status = json.loads((cut / "status.json").read_text())
    assert status["state"] == "interrupted" and f"--resume {cut}" in status["message"]
    assert [path.name for path in (cut / "checkpoints").iterdir()] == [f"step-{status['step']:06d}"]

    moved = tmp_path / "moved"  # a run folder may be taken elsewhere
    cut.rename(moved)
    capsys.readouterr()
    assert main(["train", "--resume", str(moved), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) | {"evaluation": None} == {
        "folder": str(moved),
        "final": str(moved / "final"),
        "step": 60,
        "state": "finished",
        "evaluation": None,
    }
    assert same_bits(weights_of(moved / "final"), weights_of(whole / "final"))
    assert timeless(metric_rows(moved)) == timeless(metric_rows(whole))
    assert not [path for path in moved.rglob(".*")]


VARIANTS = {
    "bnf": dict(objective=BNF()),
    "lora": dict(objective=DPO(), lora=LoraOptions(rank=2)),
    "adapter as reference": dict(
        objective=DPO(), lora=LoraOptions(rank=2), reference=ReferenceOptions(mode="adapter")
    ),
    "live reference": dict(objective=DPO(), reference=ReferenceOptions(mode="live")),
    "reference that follows": dict(
        objective=DPO(), reference=ReferenceOptions(update_every=3, update_rate=0.7)
    ),
    "adapter that follows": dict(
        objective=DPO(), lora=LoraOptions(rank=2), reference=ReferenceOptions(update_every=1, update_rate=0.2)
    ),
    "estimators": dict(objective=BCO()),
    "value head": dict(objective=BradleyTerry()),
    "weights in bf16": dict(objective=DPO(), precision="bf16", optim={"weights": "bf16"}),
    "bf16 and checkpointing": dict(objective=DPO(), precision="bf16", gradient_checkpointing=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_run_resumes(variant, tiny_folder, pairs_file, tmp_path):
    """A crash after any step leaves the files up to there; the rest of the run gives the same bits."""
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "whole", save_every=1, keep_checkpoints=9, **VARIANTS[variant]
    )
    whole = train(replace(config, epochs=3.0), quiet=True)
    cut = tmp_path / "cut"
    shutil.copytree(whole.folder, cut, ignore=shutil.ignore_patterns("final", "report.html", "step-*"))
    shutil.copytree(whole.folder / "checkpoints" / "step-000004", cut / "checkpoints" / "step-000004")
    (cut / "status.json").write_text('{"state": "running", "step": 0, "message": ""}')
    with open(cut / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "pha')  # cut off in the middle of a line
    settings = yaml.safe_load((cut / "config.yaml").read_text())
    (cut / "config.yaml").write_text(yaml.safe_dump({**settings, "output": str(cut)}))
    result = resume(settings_from_run(TrainConfig, cut), quiet=True)
    assert (result.state, result.step) == ("finished", 6)
    assert same_bits(weights_of(result.final), weights_of(whole.final))
    assert timeless(metric_rows(cut)) == timeless(metric_rows(whole.folder))


def test_a_run_interrupted_before_its_first_step_goes_on(tiny_folder, pairs_file, tmp_path):
    """Its only checkpoint is that of step 0, and the evaluation there is not written twice."""
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", max_steps=2)
    # A signal that comes while the run is being set up would end it; one on the first evaluation ends it
    # after that.
    whole = train(config, quiet=True)
    wanted = timeless(metric_rows(whole.folder))
    other = tiny_config(tiny_folder, pairs_file, tmp_path / "other", max_steps=2)

    def interrupt(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "evaluate":
            os.kill(os.getpid(), signal.SIGINT)
            sys.setprofile(None)

    sys.setprofile(interrupt)
    try:
        stopped = train(other, quiet=True)
    finally:
        sys.setprofile(None)
    assert (stopped.state, stopped.step, stopped.final) == ("interrupted", 0, None)
    assert timeless(metric_rows(stopped.folder)) == wanted[:1]
    result = resume(settings_from_run(TrainConfig, stopped.folder), quiet=True)
    assert timeless(metric_rows(result.folder)) == wanted
    assert same_bits(weights_of(result.final), weights_of(whole.final))
