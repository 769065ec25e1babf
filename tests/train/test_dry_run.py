"""What a run will cost: counts by hand, the memory of a real allocation, refusals, and that nothing is left
behind.
"""

import json
import mmap
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preftune.cli.main import main
from preftune.model.cost import Shape, work_of
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from preftune.progress import Reporter
from preftune.train import device_memory
from preftune.train.device_memory import PeakMemory, available_bytes, in_memory
from preftune.train.dry_run import dry_run
from preftune.train.loop import train
from preftune.train.processes import ALONE
from tests.folders import metric_rows, tiny_config
from tests.models import random_groups

CPU = torch.device("cpu")


@pytest.mark.parametrize("counter", ["of the system", "a thread that reads"])
def test_memory_is_that_of_the_process(counter, monkeypatch, tmp_path):
    if counter == "a thread that reads":  # as on Windows and macOS
        monkeypatch.setattr(device_memory, "_RESET", tmp_path / "none")
    before = in_memory(CPU)
    with PeakMemory(CPU) as peak:
        held = mmap.mmap(-1, 64 * 2**20)  # pages of its own, which no allocator has had before
        held.write(b"1" * 64 * 2**20)
        time.sleep(0.05)
        assert in_memory(CPU) - before > 60 * 2**20
        held.close()
    assert in_memory(CPU) < peak.bytes - 60 * 2**20
    with PeakMemory(CPU) as after:
        pass
    assert after.bytes < in_memory(CPU) + 2**24
    assert 2**28 < available_bytes(CPU) < 2**46


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": True}, {"eval_fraction": 0.0, "epochs": 3.0}]
)
def test_a_forecast_of_pairs(settings, tiny_folder, pairs_file, tmp_path):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", **settings)
    found = dry_run(config, Reporter(quiet=True), ALONE)
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()
    run = train(config, quiet=True)
    rows = [row for row in metric_rows(run.folder) if row["phase"] == "train"]
    assert found.num_steps == len(rows)
    assert found.largest_positions == max(
        np.diff([0, *(row["num_tokens"] for row in rows)])
    )  # a step is one micro-batch
    assert found.total_seconds == pytest.approx(
        found.start_seconds + found.evaluation_seconds + found.num_steps * found.step_seconds, rel=1e-6
    )
    assert (found.evaluation_seconds == 0) == (not config.eval_fraction)
    assert in_memory(CPU) * 0.5 < found.peak_bytes < found.free_bytes
    assert 0 < found.mfu < 1.5 and found.step_seconds > 0


def test_the_weights_do_not_move(tiny_folder, pairs_file, tmp_path, capsys, monkeypatch):
    before = load_model(str(tiny_folder), LoadOptions()).state_dict()
    words = [
        "--model",
        str(tiny_folder),
        "--data",
        pairs_file,
        "--output",
        str(tmp_path / "run"),
        "--batch_size",
        "4",
    ]
    assert main(["train", *words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_steps"] == 2 and found["device"] == "cpu"
    monkeypatch.chdir(tmp_path)
    without_output = [word for word in words if word not in ("--output", str(tmp_path / "run"))]
    assert main(["train", *without_output, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "memory" in told and "total" in told and "2 steps" in told
    after = load_model(str(tiny_folder), LoadOptions()).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "run").exists()


def test_own_samples_are_drawn_once(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", source="on-policy", reward="length.min", max_steps=3
    )
    found = dry_run(config, Reporter(quiet=True), ALONE)
    assert found.num_steps == 3
    assert found.largest_positions == config.layout.micro_batch_tokens  # the longest completions may yet come
    assert found.evaluation_seconds > 0


def test_shards_are_not_rehearsed(tiny_folder, pairs_file, tmp_path, capsys):
    words = [
        "--model",
        str(tiny_folder),
        "--data",
        pairs_file,
        "--output",
        str(tmp_path / "run"),
        "--shard.mode",
        "full",
    ]
    assert main(["train", *words, "--dry-run"]) == 2
    assert "A dry run is for one process; got 1 processes, shard.mode full" in capsys.readouterr().err


LIMITED = """
import re, resource, sys
from preftune.cli.main import main
import preftune.commands.train
now = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + {room} * 2**20, resource.RLIM_INFINITY))
sys.exit(main({words!r}))
"""


def test_what_does_not_fit_is_refused(tiny_folder, pairs_file, tmp_path):
    """100 MiB of weights; gradient and moments take 300 more, and the process may have 520 beside its libraries."""
    config = LlamaConfig.from_pretrained(tiny_folder)
    config.vocab_size, config.hidden_size = 102_400, 128
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    load_tokenizer(str(tiny_folder), LoadOptions()).save_pretrained(tmp_path / "wide")
    words = [
        "train",
        "--model",
        str(tmp_path / "wide"),
        "--data",
        pairs_file,
        "--output",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    program = LIMITED.format(room=520, words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "The run will not fit into memory with weights, gradient and moments alone" in done.stderr
    assert "Set --lora.rank 16" in done.stderr and "Traceback" not in done.stderr


def test_a_finished_run_has_nothing_to_rehearse(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("objective: dpo\n", encoding="utf-8")
    assert main(["train", "--resume", str(tmp_path), "--dry-run"]) == 2
    assert "--resume takes a run folder and nothing else" in capsys.readouterr().err


def test_the_arithmetic_is_that_of_the_groups(tiny_folder):
    shape, groups = Shape.of(load_model(str(tiny_folder), LoadOptions())), random_groups(2)
    assert work_of(shape, [*groups, *groups]).training == 2 * work_of(shape, groups).training
