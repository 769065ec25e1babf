"""Two processes train as one does: the same weights, the same lines in the log, offline and on-policy,
through the command line.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import preftune
from preftune.cli.main import main
from preftune.train.processes import Processes
from tests.folders import weights_of
from tests.train.likeness import COMMON, same, write_files
from tests.train.together import NEEDS_SHARDS, all_fail, run_all, torchrun

CASES = {
    "pairs": "--data pairs.jsonl --objective dpo --epochs 6",
    "a step of three groups for two processes": "--data pairs.jsonl --objective bnf --batch_size 3 --epochs 3",
    "one group a step, so that one process has none": "--data pairs.jsonl --objective dpo --batch_size 1 --max_steps 6",
    "a coupled objective": "--data pairs.jsonl --objective kto --epochs 3",
    "estimators": "--data pairs.jsonl --objective bco --epochs 3",
    "own samples": "--data pairs.jsonl --source on-policy --reward taste.py:taste --sampling.max_new_tokens 6 --epochs 3",
    "the best weights": "--data pairs.jsonl --objective dpo --epochs 8 --eval_every 2 --learning_rate 3e-3 "
    "--keep_best rewards/margins --early_stopping_patience 2",
    "pairs and unjudged samples": "--data pairs.jsonl --source hybrid --objective hypo --objective.kl_weight 0.1 "
    "--sampling.num_completions 2 --sampling.max_new_tokens 6 --epochs 2",
    "an adapter": "--data pairs.jsonl --objective dpo --lora_r 4 --epochs 3",
}


ONCE = pytest.mark.xdist_group("processes")  # in one worker: what they compare is run once
LOW = "--data pairs.jsonl --objective dpo --batch_size 1 --max_steps 6 --precision bf16 --optim.weights bf16"
SAVING = [*COMMON.split(), *CASES["pairs"].split(), "--save_every", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder):
    """Every case by two processes, which are started once; and a run of one process that two go on with."""
    made = write_files(tmp_path_factory.mktemp("processes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert main(["train", *SAVING, "--model", str(tiny_folder), "--output", "whole"]) == 0
    cut(made / "whole", made / "one-two")
    jobs = [[*words_of(case, tiny_folder), "--output", str(number)] for number, case in enumerate(CASES)]
    saving = ["train", *SAVING, "--model", str(tiny_folder), "--output", "two"]
    low = ["train", *COMMON.split(), *LOW.split(), "--model", str(tiny_folder), "--output", "low"]
    done = run_all([*jobs, saving, ["train", "--resume", "one-two"], low], cwd=made)
    assert done.stdout.count("try it") == len(jobs) + 3  # told once, not by each process
    return made


def words_of(case: str, model: Path) -> list[str]:
    return ["train", *COMMON.split(), *CASES[case].split(), "--model", str(model)]


def cut(run: Path, copy: Path) -> None:
    """A copy of a run as it was at its last checkpoint."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("final"))
    (copy / "status.json").write_text(json.dumps({"state": "interrupted", "step": 16, "message": ""}))


@ONCE
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, runs, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    assert main([*words_of(case, tiny_folder), "--output", str(tmp_path / "alone")]) == 0
    together = runs / str(list(CASES).index(case))
    same(tmp_path / "alone", together)
    assert "processes: 2" in (together / "config.yaml").read_text()


@ONCE
def test_both_keep_the_same_evaluation(runs, tiny_folder, tmp_path, monkeypatch):
    """Of several, and not that of the start; nothing of it is left in the run folder."""
    monkeypatch.chdir(runs)
    assert main([*words_of("the best weights", tiny_folder), "--output", str(tmp_path / "alone")]) == 0
    together = runs / str(list(CASES).index("the best weights"))
    one, two = (json.loads((folder / "best.json").read_text()) for folder in (tmp_path / "alone", together))
    assert one["step"] == two["step"] > 0 and one["value"] == pytest.approx(two["value"], rel=1e-4)
    assert not (together / "best").exists()


@ONCE
def test_weights_in_bf16_are_rounded_alike(runs, tiny_folder, tmp_path, monkeypatch):
    """Gradients of two processes may differ from one's in their last bit, and a chance may then fall
    otherwise: by one step of bf16, in few places.
    """
    monkeypatch.chdir(runs)
    assert (
        main(
            [
                "train",
                *COMMON.split(),
                *LOW.split(),
                "--model",
                str(tiny_folder),
                "--output",
                str(tmp_path / "alone"),
            ]
        )
        == 0
    )
    ours, theirs = weights_of(tmp_path / "alone" / "final"), weights_of(runs / "low" / "final")
    different = sum(int((ours[name] != theirs[name]).sum()) for name in ours) / sum(
        t.numel() for t in ours.values()
    )
    assert ours.keys() == theirs.keys() and different < 0.01
    for name in ours:
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=2**-6, atol=1e-3)


@ONCE
def test_a_run_goes_on_with_another_number_of_processes(runs, monkeypatch):
    monkeypatch.chdir(runs)
    same(runs / "whole", runs / "one-two")
    cut(runs / "two", runs / "two-one")
    assert main(["train", "--resume", "two-one"]) == 0
    same(runs / "whole", runs / "two-one")


ERRORS = {
    "--data nothing.jsonl": (2, "nothing.jsonl"),
    "--data pairs.jsonl --learning_rate 1e30 --epochs 3": (3, "not finite"),
    "--data pairs.jsonl --source on-policy --reward broken.py:broken": (3, "broken"),
    "--data pairs.jsonl --learning_rate 1e30 --epochs 3 --shard.mode full": (
        3,
        "weights before it are in 3/checkpoints",
    ),
    "--data pairs.jsonl --source on-policy --reward broken.py:broken --shard.mode full": (3, "broken"),
}


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    folder = write_files(tmp_path_factory.mktemp("failing"))
    (folder / "broken.py").write_text(
        "def broken(prompts, completions, **columns):\n    raise ValueError('no')\n"
    )
    return folder


@pytest.fixture(scope="module")
def errors(failing, tiny_folder):
    jobs = [["train", *COMMON.split(), *words.split(), "--model", str(tiny_folder)] for words in ERRORS]
    told = all_fail([[*job, "--output", str(number)] for number, job in enumerate(jobs)], failing)
    return dict(zip(ERRORS, told, strict=True))


@NEEDS_SHARDS
@pytest.mark.xdist_group("errors")
@pytest.mark.parametrize("words", ERRORS)
def test_an_error_is_told_once_and_ends_all(words, errors):
    status, message = ERRORS[words]
    statuses, texts = zip(*errors[words], strict=True)
    told = [line for text in texts for line in text.splitlines() if line.startswith("preftune train:")]
    assert len(told) == 1 and message in told[0]
    assert all(statuses) and status in statuses
    assert not any(in_our_code(text) for text in texts)


def in_our_code(text: str) -> list[str]:
    """Lines of a traceback that name a file of the package, whatever the folder of the checkout is called."""
    package = Path(preftune.__file__).parent.as_posix()
    return [line for line in text.splitlines() if line.lstrip().startswith(f'File "{package}/')]


def test_a_traceback_of_ours_is_noticed():
    file = Path(preftune.__file__).with_name("errors.py")
    assert in_our_code(f'  File "{file}", line 1, in f\n    raise\n') and not in_our_code(sys.executable)


def test_a_job_that_fails_is_one_that_torchrun_calls_failed(failing, tiny_folder):
    done = torchrun(
        "train", "--data", "nothing.jsonl", "--model", str(tiny_folder), "--output", "run", cwd=failing
    )
    assert done.returncode != 0 and re.search(r"exitcode\s*: 2", done.stderr)
    assert len([line for line in done.stderr.splitlines() if line.startswith("preftune train:")]) == 1
    assert not in_our_code(done.stderr)


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
