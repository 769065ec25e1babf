"""Two processes train as one does: the same weights, the same lines in the log, offline and on-policy, through the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preftune.cli import main
from preftune.train.processes import Processes
from tests.folders import PAIRS, metric_rows, timeless, weights_of, write_rows

TASTE = """
def taste(prompts, completions, **columns):
    return [float(sum(map(c.count, "aeiou"))) for c in completions]
"""
COMMON = ("--batch_size 4 --learning_rate 1e-3 --schedule constant --warmup_ratio 0 --eval_fraction 0.25 "
          "--micro_batch_tokens 120")  # fmt: skip


def torchrun(*words: str, processes: int = 2, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "preftune"]
    return subprocess.run([*command, *words], capture_output=True, text=True, cwd=cwd, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{**row, "prompt": f"{row['prompt']} {k}"} for k in range(2) for row in PAIRS])
    (tmp_path / "taste.py").write_text(TASTE)
    return tmp_path


def same(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    """Weights, and every number of the log."""
    ours, theirs = weights_of(one / "final"), weights_of(two / "final")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < tolerance
    for mine, other in zip(timeless(metric_rows(one)), timeless(metric_rows(two)), strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"packing", *(name for name in mine if "accurac" in name and mine["step"] < 2)}:  # ties
            assert mine[name] == other[name] or mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (name, mine["step"])


CASES = {
    "pairs": "--data pairs.jsonl --objective dpo --epochs 6",
    "a step of three groups for two processes": "--data pairs.jsonl --objective bnf --batch_size 3 --epochs 3",
    "one group a step, so that one process has none": "--data pairs.jsonl --objective dpo --batch_size 1 --max_steps 6",
    "a coupled objective": "--data pairs.jsonl --objective kto --epochs 3",
    "estimators": "--data pairs.jsonl --objective bco --epochs 3",
    "own samples": "--data pairs.jsonl --source on-policy --reward taste.py:taste --sampling.max_new_tokens 6 --epochs 3",
    "an adapter": "--data pairs.jsonl --objective dpo --lora_r 4 --epochs 3",
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, folder, tiny_folder, monkeypatch):
    words = ["train", *COMMON.split(), *CASES[case].split(), "--model", str(tiny_folder)]
    monkeypatch.chdir(folder)
    assert main([*words, "--output", "alone"]) == 0
    done = torchrun(*words, "--output", "together", cwd=folder)
    assert done.returncode == 0, done.stderr
    same(folder / "alone", folder / "together")
    assert done.stdout.count("try it") == 1 and "processes: 2" in (folder / "together" / "config.yaml").read_text()


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(first, second, folder, tiny_folder):
    words = ["train", *COMMON.split(), *CASES["pairs"].split(), "--model", str(tiny_folder), "--save_every", "4"]
    assert torchrun(*words, "--output", "whole", processes=1, cwd=folder).returncode == 0
    assert torchrun(*words, "--output", "cut", processes=first, cwd=folder).returncode == 0
    (folder / "cut" / "final").rename(folder / "kept")
    (folder / "cut" / "status.json").write_text(json.dumps({"state": "interrupted", "step": 8, "message": ""}))
    done = torchrun("train", "--resume", "cut", processes=second, cwd=folder)
    assert done.returncode == 0, done.stderr
    same(folder / "whole", folder / "cut")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("--data nothing.jsonl", 2, "nothing.jsonl"),
        ("--data pairs.jsonl --learning_rate 1e30 --epochs 3", 3, "not finite"),
        ("--data pairs.jsonl --source on-policy --reward broken.py:broken", 3, "broken"),
    ],
)
def test_an_error_is_told_once_and_ends_all(words, status, message, folder, tiny_folder):
    (folder / "broken.py").write_text("def broken(prompts, completions, **columns):\n    raise ValueError('no')\n")
    done = torchrun("train", *COMMON.split(), *words.split(), "--model", str(tiny_folder), "--output", "run", cwd=folder)
    told = [line for line in done.stderr.splitlines() if line.startswith("preftune train:")]
    assert done.returncode != 0 and len(told) == 1 and message in told[0]
    assert "preftune/" not in re.sub(r"^preftune train:.*$", "", done.stderr, flags=re.MULTILINE)  # no traceback of ours
    assert re.search(rf"exitcode\s*: {status}", done.stderr)


def test_shares_are_whole_and_level():
    sizes = [90, 10, 40, 35, 20, 5, 60]
    shares = [Processes(rank=rank, size=3).share(sizes) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert [sum(sizes[i] for i in share) for share in shares] == [90, 85, 85]
    assert Processes().share(sizes) == list(range(7))


def test_alone_everything_is_the_identity():
    alone, parameter = Processes(), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    alone.sum_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0] and alone.total(3.0) == 3.0 and alone.gather("a") == ["a"]
    assert alone.from_main(lambda: 5) == 5 and alone.any(True) and not alone.any(False)
