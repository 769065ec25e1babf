"""A model in shards trains as a whole one does: two processes against one, through the command line.

torchrun is started once for all runs, and once for those that go on from a checkpoint.
"""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaConfig, LlamaForCausalLM

from preftune.cli.main import main
from preftune.errors import ConfigError
from preftune.model.shard import ShardOptions
from tests.folders import same_bits, weights_of
from tests.train.likeness import COMMON, same, write_files
from tests.train.together import COMMAND, NEEDS_SHARDS, environment, run_all, torchrun

pytestmark = NEEDS_SHARDS

SAMPLES = (
    "--data pairs.jsonl --source on-policy --reward taste.py:taste --sampling.max_new_tokens 6 --epochs 2"
)
CASES = {
    "pairs": "--data pairs.jsonl --objective dpo --max_steps 20 --epochs 9 --save_every 8 --keep_checkpoints 2",
    "live": "--data pairs.jsonl --objective dpo --epochs 2 --reference.mode live --gradient_checkpointing true",
    "idle": "--data pairs.jsonl --objective dpo --batch_size 1 --max_steps 6",
    "coupled": "--data pairs.jsonl --objective kto --batch_size 3 --epochs 2",
    "adapter": "--data pairs.jsonl --objective dpo --lora_r 3 --reference.update_every 2 --reference.update_rate 0.5 --epochs 3"
    " --save_every 4",
    "rewards": "--data pairs.jsonl --objective bradley-terry --lora_r 4 --epochs 2",
    "samples": SAMPLES,
    "values": f"{SAMPLES} --objective ppo --objective.value_clip 0.2 --lora_r 4",
}
ONCE = pytest.mark.xdist_group("shards")  # in one worker: what they compare is run once
OWN = {"live": "--shard.reshard false"}  # settings of shards beside the mode


def words_of(case: str) -> list[str]:
    return ["train", *COMMON.split(), "--eval_every", "4", *CASES[case].split()]


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_folder):
    made = write_files(tmp_path_factory.mktemp("shards"))
    shutil.copytree(tiny_folder, made / "tiny")
    return made


@pytest.fixture(scope="module")
def folder(files):
    """Every case, run by two processes in shards; the small runs in one process follow where they are
    compared.
    """
    shards = {case: ["--shard.mode", "full", *OWN.get(case, "").split()] for case in CASES}
    run_all(
        [[*words_of(case), *shards[case], "--model", "tiny", "--output", f"{case}-two"] for case in CASES],
        cwd=files,
    )
    return files


def alone(case: str, folder: Path) -> Path:
    output = folder / f"{case}-one"
    if not output.exists():
        assert main([*words_of(case), "--model", "tiny", "--output", str(output)]) == 0
    return output


@ONCE
@pytest.mark.parametrize("case", CASES)
def test_shards_are_one_model(case, folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = alone(case, folder)
    same(run, folder / f"{case}-two")
    start, moved = weights_of(folder / "tiny"), weights_of(run / "final")
    both = start.keys() & moved.keys()
    assert not both or max(float((moved[name] - start[name]).abs().max()) for name in both) > 1e-4


def interrupted(run: Path, name: str, step: int, **settings) -> Path:
    """A copy of a run as it was at a checkpoint."""
    copy = run.parent / name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("final"))
    for path in (copy / "checkpoints").iterdir():
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)
    (copy / "status.json").write_text(json.dumps({"state": "interrupted", "step": step, "message": ""}))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["shard"] |= settings
    (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return copy


@ONCE
def test_a_run_in_shards_goes_on_with_any_number_of_processes(folder, monkeypatch):
    """2 -> 2, of an adapter and its moving reference bit for bit; 2 -> 1, where the model is whole; 1 -> 2,
    into shards, and with replicas.
    """
    monkeypatch.chdir(folder)
    two, one = folder / "pairs-two", alone("pairs", folder)
    assert {path.name for path in (two / "checkpoints" / "step-000008" / "shards").iterdir()} == {
        "00000-of-00002.safetensors",
        "00001-of-00002.safetensors",
    }
    copies = {
        "two-two": interrupted(two, "two-two", 8),
        "one-two": interrupted(one, "one-two", 8, mode="full"),
        "two-replicas": interrupted(two, "two-replicas", 16, mode="none"),
        "adapters": interrupted(folder / "adapter-two", "adapters", 8),
    }
    run_all([["train", "--resume", name] for name in copies], cwd=folder)
    assert main(["train", "--resume", str(interrupted(two, "two-one", 8))]) == 0

    same(two, copies["two-two"], tolerance=1e-6)
    assert same_bits(weights_of(copies["adapters"] / "final"), weights_of(folder / "adapter-two" / "final"))
    for copy in ("two-one", "one-two", "two-replicas"):
        same(one, folder / copy)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("travels", [True, False])
def test_only_the_first_process_reads_the_weights(tied, travels, tmp_path):
    """The other one gets the same bits; it reads them itself where the model's code cannot be sent."""
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    heads = dict(num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=tied)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    model.save_pretrained(tmp_path / "model")
    script = Path(__file__).with_name("loading.py")
    done = subprocess.run(
        [*COMMAND, "2", str(script), "model", "travels" if travels else "stays"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["arrives_on"], second["arrives_on"]) == (["cpu"], ["meta" if travels else "cpu"])
    assert first["same"] and second["same"] and first["tied"] == second["tied"] == tied
    assert first["count"] == second["count"] == (20 if tied else 21)


DYING = """
import os, signal, time, torch

def step(self, *arguments, before=torch.optim.AdamW.step, steps=[]):
    steps.append(1)
    if len(steps) == 3:
        {how}
    return before(self, *arguments)

if os.environ.get("RANK") == "{rank}":
    torch.optim.AdamW.step = step

def taste(prompts, completions, **columns):
    return [float(len(c)) for c in completions]
"""
DEATHS = {
    "killed": (0, "os.kill(os.getpid(), signal.SIGKILL)"),
    "an exception": (1, "raise ZeroDivisionError"),
    "stuck": (1, "time.sleep(15)"),
}
"""Number of the process and what happens in it."""


@pytest.mark.parametrize("how", DEATHS)
def test_a_process_that_dies_ends_the_run_soon(how, files):
    """The others do not wait for it: one sentence, no hang, and a status that says so."""
    name = re.sub(r"\W", "_", how)
    rank, action = DEATHS[how]
    (files / f"{name}.py").write_text(DYING.format(rank=rank, how=action))
    words = [
        *words_of("samples"),
        "--epochs",
        "100000",
        "--reward",
        f"{name}.py:taste",
        "--model",
        "tiny",
        "--output",
        name,
    ]
    started = time.monotonic()
    patience = ["--process_minutes", "0.1"] if how == "stuck" else []
    done = torchrun(*words, *patience, "--shard.mode", "full", cwd=files)
    assert done.returncode != 0 and time.monotonic() - started < 120  # seconds on an idle machine
    told = f"Process {1 - rank} lost another process of the run; got "
    assert f"preftune train: {told}" in done.stderr
    status = json.loads((files / name / "status.json").read_text())
    assert status["state"] == "failed" and status["step"] == 2 and status["message"].startswith(told)
    assert f"preftune train --resume {name}" in status["message"] and "gloo" not in status["message"]
    assert ("ZeroDivisionError" in done.stderr) == (how == "an exception")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shard.mode full", r"One process has nothing to share its weights with; got shard.mode full"),
        ("--shard.offload true", r"shard.reshard and shard.offload have no effect; got shard.mode none"),
        ("--process_minutes 0", r"process_minutes is out of range; got 0"),
        ("--process_minutes 5", r"One process waits for no others; got process_minutes 5"),
    ],
)
def test_what_has_no_effect_is_refused(words, message, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert main([*words_of("pairs"), *words.split(), "--model", "tiny", "--output", "refused"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_options_of_shards_belong_to_shards():
    with pytest.raises(ConfigError, match="have no effect"):
        ShardOptions(reshard=False)
    assert ShardOptions(mode="full", reshard=False).offload is False


def test_an_older_torch_is_refused_before_training(monkeypatch):
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
    with pytest.raises(ConfigError, match=r"expected torch 2\.13 or newer"):
        ShardOptions(mode="full")
