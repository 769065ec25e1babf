"""What people type before they have read anything: each line runs, or its sentence says what to type instead."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.cli.settings import parse_settings
from preftune.cli.words import prepared
from preftune.train.loop import train
from preftune.train.options import TrainConfig
from tests.folders import tiny_config

PLAIN_PYTHON = """
import argparse, ast, inspect, subprocess, typing
for _ in range(2):
    [ast.parse(inspect.getsource(module)) for module in (argparse, inspect, subprocess, typing)]
"""
MAX_RATIO = 3.0  # of processor times: an answer / PLAIN_PYTHON, which takes 0.23 s where 0.7 s is the limit

TRAIN = [
    ("dpo --data pairs.csv --output r", "objective.name", "dpo"),
    ("--data pairs.csv --lr 1e-4 --output r", "optim.learning_rate", 1e-4),
    ("--data pairs.csv --lora --output r", "lora.rank", 16),
    ("--data pairs.csv --lora_dropout 0.05 --output r", "lora.dropout", 0.05),
    ("--data pairs.csv --lora_target_modules all-linear --output r", "lora.target_modules", "all-linear"),
    ("--data pairs.csv --objective DPO --output r", "objective.name", "dpo"),
    ("--data pairs.csv --method dpo --output r", "objective.name", "dpo"),
    ("--data pairs.csv --loss dpo --output r", "objective.name", "dpo"),
    ("--data pairs.csv --objective simpo --gamma 0.5 --output r", "objective.gamma", 0.5),
    ("--data pairs.csv --val_split 0.1 --output r", "eval_fraction", 0.1),
    ("--data pairs.csv --gradient_checkpointing --output r", "gradient_checkpointing", True),
    ("--data pairs.csv --max_steps 400 --output r", "max_steps", 400),
    ("--data pairs.csv --early_stopping_patience 3 --output r", "best_metric.name", "loss"),
    ("--data pairs.csv --load_best_model_at_end --output r", "best_metric.name", "loss"),
    (
        "--data pairs.csv --load_best_model_at_end true --metric_for_best_model eval_kl -o r",
        "best_metric.name",
        "kl",
    ),
    (
        "--data pairs.csv --metric_for_best_model eval_kl --load_best_model_at_end -o r",
        "best_metric.name",
        "kl",
    ),
    ("--data prompts.jsonl --source on-policy --reward my.py --output r", "reward", "my.py"),
    ("--data pairs.csv --load_in_4bit --output r", "lora.quantization", "nf4"),
    ("--data pairs.csv --use_lora --output r", "lora.rank", 16),
    ("--data pairs.csv --bf16 --output r", "precision", "bf16"),
    ("--data pairs.csv --batch-size 2 --output r", "batch_size", 2),
    ("pairs.csv dpo --output r", "data", "pairs.csv"),
    ("-d pairs.csv -o r", "output", "r"),
    ("--stage dpo --pref_beta 0.2 -d pairs.csv -o r", "objective.beta", 0.2),
    ("--optim paged_adamw_32bit -d pairs.csv -o r", "optim.name", "adamw"),
    ("--objective kto --desirable_weight 1.5 -d pairs.csv -o r", "objective.desirable_weight", 1.5),
    ("--rlhf_type kto -d pairs.csv -o r", "objective.name", "kto"),
    ("--gradient_clipping 0.5 -d pairs.csv -o r", "optim.max_grad_norm", 0.5),
    ("run.yaml", "optim.learning_rate", 1e-3),
]

MISTAKES = [
    ("train --data pairs.csv --resume_from_checkpoint r", "Use: preftune train --resume RUN"),
    ("train --data pairs.csv --push_to_hub --output r", "preftune export RUN --to hub"),
    ("train --data pairs.csv --wandb --output r", "--report_to wandb"),
    ("objectives dop", "Did you mean dpo?"),
    ("trian", "Did you mean preftune train?"),
    ("finetune --data pairs.csv", "Use: preftune train"),
    ("train --data missing.csv --output r", "missing.csv does not exist"),
    ("train --data pairs.csv", "--output is missing"),
    ("train --data pairs.csv --precision bf61 --output r", "got bf61; expected fp32, bf16"),
    ("train --data pairs.csv --epochs two --output r", "got two; expected a number"),
    ("train --data pairs.csv --eval_strategy steps --output r", "Use --eval_every STEPS"),
    ("train --collect.temperature 0.7", "Did you mean --sampling.temperature?"),
    ("train --greater_is_better false", "Use --keep_best max:METRIC or min:METRIC"),
    ("diagnose nothing.csv", "nothing.csv does not exist"),
    ("inspect nothing.csv", "nothing.csv does not exist"),
    ("sample nowhere --prompt hi", "There is no model 'nowhere'"),
    ("report nowhere", "There is no such run folder"),
    ("eval r/final --tasks inspect:x", "preftune[tasks]"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The files that the lines name, in the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"question {i},a good answer {i},no\n" for i in range(6))
    Path("pairs.csv").write_text("prompt,chosen,rejected\n" + rows)
    Path("prompts.jsonl").write_text('{"prompt": "hi"}\n')
    Path("samples.jsonl").write_text('{"prompt": "hi", "completions": ["a", "b"]}\n')
    Path("my.py").write_text(
        "def reward(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n"
    )
    Path("run.yaml").write_text("data: pairs.csv\noutput: r\noptim:\n  learning_rate: 1.0e-3\n")


@pytest.mark.parametrize(("line", "name", "wanted"), TRAIN, ids=[line for line, _, _ in TRAIN])
def test_a_guess_has_the_meaning_that_people_expect(line, name, wanted):
    config = parse_settings(TrainConfig, prepared("train", shlex.split(line)), prog="preftune train")
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    assert value == wanted


def timed(words: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """(processor time in seconds, what became of it) of a Python process."""
    before = os.times()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    after = os.times()
    return (after.children_user + after.children_system - before.children_user - before.children_system, done)


@pytest.mark.parametrize(("line", "told"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_answered_before_the_libraries_are_imported(line, told):
    """0.7 s at most, in units of plain Python, because machines differ; the best of three, because they are busy."""
    ratios = []
    while not ratios or (ratios[-1] > MAX_RATIO and len(ratios) < 3):
        unit, _ = timed(["-c", PLAIN_PYTHON])
        seconds, done = timed(["-m", "preftune", *shlex.split(line)])
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr
        ratios.append(seconds / unit)
    assert ratios[-1] <= MAX_RATIO, ratios


@pytest.mark.parametrize(
    "line",
    [
        "reward samples.jsonl --reward model:rm --output r.jsonl",
        "train --data prompts.jsonl --source on-policy --reward model:rm --output r",
    ],
)
def test_a_reward_model_is_no_module(line, capsys):
    assert main(shlex.split(line)) == 2
    assert "There is no model 'rm'" in capsys.readouterr().err


def test_eight_bit_adam_runs_or_names_its_package(capsys):
    status = main(
        shlex.split("train --data pairs.csv --optim adamw_8bit --output r --dry-run --model nowhere")
    )
    told = capsys.readouterr().err
    assert status == 2 and ("pip install torchao" in told or "There is no model" in told)


@pytest.mark.parametrize(
    "line",
    ["sample r --prompt hi --max_new_tokens 3", "chat r --max_new_tokens 3", "eval r/final --data pairs.csv"],
)
def test_a_run_is_named_by_its_folder(line, tiny_folder, monkeypatch, capsys):
    train(tiny_config(tiny_folder, "pairs.csv", "r", max_steps=1), quiet=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("/exit\n"))
    assert main(shlex.split(line)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", ["help train", "train help", "train --help"])
def test_help_is_found_by_each_of_its_names(line, capsys):
    assert main(line.split()) == 0
    assert "usage: preftune train" in capsys.readouterr().out


EARLY = [
    ("compare --problem overlp --objectives bnf,dpo --steps 4 --output c", "Did you mean overlap?"),
    ("advise --problem r99", "There is no such problem; got r99; expected a YAML file, or one of"),
    ("lab runn", "Did you mean preftune lab run?"),
    ("lab run rr1", "Did you mean r1?"),
    ("lab show E99", "There is no such experiment or problem; got E99"),
    ("curves dpoo", "Unknown objective 'dpoo'. Did you mean dpo?"),
    ("docs quikstart", "Did you mean preftune docs quickstart?"),
    ("docs nosuchpage", "preftune docs lists the pages"),
    ("export r --to ggfu --output x", "expected merged, adapter, gguf, ollama, hub"),
    ("export r --to ggml --output x", "Did you mean gguf?"),
    ("export r --gguf --output x", "Use --to gguf"),
    ("import-config missing.yaml", "missing.yaml does not exist"),
    ("import-config pairs.csv", "pairs.csv is no configuration; got .csv"),
    ("train --data pairs.csv --objective nomod:Loss --output r", "there is no module 'nomod'"),
    ("train --data pairs.csv --objective my.py:reword --output r", "Did you mean reward?"),
    ("train --data prompts.jsonl --source on-policy --reward my:rewar --output r", "Use my.py:rewar"),
    ("train --data prompts.jsonl --source on-policy --reward no.py:f --output r", "there is no file 'no.py'"),
    ("iterate --prompts prompts.jsonl --eval_reward my.py:rewar --output r", "Did you mean reward?"),
    ("train --data pairs.csv --quantization_bit 4 --output r", "Use --lora.quantization nf4"),
    ("train --data pairs.csv --sample_packing --output r", "Leave it out: sequences always share rows"),
    ("train --data pairs.csv --reference_free --output r", "an objective without a reference"),
    ("train --data pairs.csv --sft_coef 0.1 --output r", "--objective dpo+0.1*sft"),
    ("train-rm --data pairs.csv", "Use: preftune train-reward-model"),
    ("train --data pairs.csvv --output r", "pairs.csvv does not exist"),
    (
        "train --data pairs.csv --lr -1 --output r",
        "learning_rate is out of range; got -1; expected at least 0",
    ),
    ("train --data pairs.csv --output r --eval_fraction 1.5", "expected a number in [0, 1)"),
    ("train --data pairs.csv --device gpu --output r", "expected cuda"),
    ("train --data pairs.csv --precision bfloat16 --output r", "Did you mean bf16?"),
    ("train --data pairs.csv --source online --reward brief --output r", "Did you mean on-policy?"),
    ("train --data pairs.csv --reference base --output r", "Did you mean --reference.model base?"),
    ("train --data pairs.csv -lr 1e-4 --output r", "Use --lr"),
    ("train --data pairs.csv held_out.csv --output r", "Give a folder that holds both files"),
    ("train --model pairs.csv --data prompts.jsonl --output r", "--model names a data file"),
    ("train --config nothing.yaml", "nothing.yaml does not exist"),
    ("train --resume nothing", "nothing is not a run folder"),
    ("train --data pairs.csv --source on-policy --output r", "scored by a reward; got none"),
    ("train --data pairs.csv --reward brief --output r", "Set --source on-policy"),
    ("train --data pairs.csv --source on-policy --reward breif --output r", "Did you mean brief?"),
    ("train --data pairs.csv --rpo_alpha 1 --output r", "--objective dpo+1*sft"),
    ("train --data pairs.csv --use_unsloth --output r", "Leave it out"),
    ("train --data pairs.csv --wandb_project x --output r", "WANDB_PROJECT"),
    ("train --data pairs.csv --gpu 0 --output r", "--device cuda"),
    ("eval nowhere/model", "--data FILE, --prompts FILE or --tasks NAMES"),
    ("eval nowhere/model pairs.csv", "Use: preftune eval nowhere/model --data pairs.csv"),
    ("chat a/b c/d", "preftune chat a/b --compare c/d"),
    ("export r gguf", "preftune export r --to gguf"),
    ("compare --data pairs.csv --objectives dpo,ippo --output c", "Unknown objective 'ippo'. Did you mean"),
    ("report", "Name a run"),
    ("pairs.csv", "Use: preftune start pairs.csv"),
    ("--data pairs.csv --output r", "Use: preftune train --data pairs.csv"),
    ("infer r", "preftune sample RUN"),
    ("losses", "Use: preftune objectives"),
]


@pytest.mark.parametrize(("line", "told"), EARLY, ids=[line for line, _ in EARLY])
def test_a_mistake_is_answered_before_the_command_is_imported(line, told, monkeypatch, capsys):
    monkeypatch.setattr("preftune.cli.main._module_of", lambda verb: pytest.fail("the command was imported"))
    assert main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--bf16 true --output r", ["--precision", "bf16"]),
        ("--bf16=True --output r", ["--precision", "bf16"]),
        ("--loss_type sigmoid", ["--objective", "dpo"]),
        ("--max_tokens 3", ["--sampling.max_new_tokens", "3"]),
    ],
)
def test_a_setting_of_another_tool_is_translated(line, wanted):
    assert prepared("train", shlex.split(line))[:2] == wanted


def test_runs_are_compared_by_report(monkeypatch, capsys):
    for name in ("a", "b"):
        Path(name).mkdir()
        (Path(name) / "config.yaml").write_text("model: m\n")
    assert main(["compare", "a", "b"]) == 2
    assert "preftune report a b --output compare.html" in capsys.readouterr().err
