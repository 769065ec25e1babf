"""A run that cannot go on stops before harm is done, says why in one sentence, and leaves nothing
half-written.
"""

import contextlib
import json
import os
import resource
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import main
from preftune.errors import StorageError, TrainingError
from preftune.objectives.sft import SFT
from preftune.train.checkpoint import Counters, checkpoints, load_checkpoint, save_checkpoint
from preftune.train.step import MicroBatch, run_step
from preftune.types import Labels, TokenScores
from tests.folders import PAIRS, metric_rows, same_bits, save_tiny_model, timeless, weights_of, write_rows

ODD = "zyx~^`"  # characters that no other row has
ROWS = [{**row, "chosen": f"{row['chosen']} {ODD}"} if k == 5 else row for k, row in enumerate(PAIRS)]
ALONE = [
    "--batch_size",
    "1",
    "--micro_batch_tokens",
    "1",
    "--eval_fraction",
    "0",
    "--schedule",
    "constant",
    "--learning_rate",
    "1e-3",
    "--warmup_ratio",
    "0",
    "--json",
]


NOTHING: dict = {"reference": {}, "estimators": {}, "source": {}}


def poisoned_folder(folder, value: float):
    """A model whose embedding of one token is `value`; the sixth row alone has this token."""
    save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    elsewhere = {t for row in PAIRS for text in row.values() for t in tokenizer(text)["input_ids"]}
    token = next(t for t in tokenizer(ODD)["input_ids"] if t not in elsewhere and t > 15)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = value
    model.save_pretrained(folder)
    return str(folder)


def one_line(capsys) -> str:
    err = capsys.readouterr().err.strip()
    assert "\n" not in err and "Traceback" not in err
    return err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(value, tmp_path, capsys):
    model, data, run = (
        poisoned_folder(tmp_path / "model", value),
        write_rows(tmp_path / "rows.jsonl", ROWS),
        tmp_path / "run",
    )
    capsys.readouterr()
    words = ["train", "--model", model, "--data", data, "--objective", "sft", *ALONE]
    assert main([*words, "--seed", "0", "--output", str(run)]) == 3
    told = one_line(capsys)
    assert "The loss is not finite" in told and f"{data}:6" in told and f"{data}:5" not in told
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and f"{data}:6" in status["message"]
    done = status["step"]
    assert done == 4 and [row["step"] for row in metric_rows(run)] == list(range(1, done + 1))
    (kept,) = checkpoints(run / "checkpoints")
    assert str(kept) in told
    # The weights of that checkpoint are those of a run that ends before the bad row.
    assert main([*words, "--seed", "0", "--max_steps", str(done), "--output", str(tmp_path / "short")]) == 0
    good = weights_of(tmp_path / "short" / "final")
    bits = load_file(kept / "policy.safetensors")
    assert bits.keys() == good.keys()
    assert all(torch.equal(bits[k].nan_to_num(0.5), good[k].nan_to_num(0.5)) for k in good)
    assert not (run / "final").exists()


def test_a_reference_that_is_not_finite_names_the_row(tmp_path, capsys):
    model, data = poisoned_folder(tmp_path / "model", float("nan")), write_rows(tmp_path / "rows.jsonl", ROWS)
    capsys.readouterr()
    assert (
        main(
            [
                "train",
                "--model",
                model,
                "--data",
                data,
                "--objective",
                "dpo",
                "--output",
                str(tmp_path / "run"),
                *ALONE,
            ]
        )
        == 3
    )
    assert f"{data}:6" in one_line(capsys)


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    """logp = -sqrt(theta) is 0 at theta = 0, with a slope without bound."""
    theta = torch.nn.Parameter(torch.tensor([4.0, 1.0, 0.0, 9.0]))
    optimizer = torch.optim.AdamW([theta], lr=0.1)
    one, plus = torch.tensor([1]), Labels(label=torch.tensor([1]))
    pieces = [
        MicroBatch(content=[k], lengths=one, prompt=one, signal=plus, origins=(f"rows:{k + 1}",))
        for k in range(4)
    ]

    def score(piece: MicroBatch) -> TokenScores:
        return TokenScores(logp=-theta[piece.content].sqrt(), lengths=piece.lengths)

    with pytest.raises(TrainingError, match=r"The gradient is not finite; got norm .* from rows rows:3\."):
        run_step(pieces, SFT(), score, [theta], optimizer, max_grad_norm=1.0)
    assert theta.tolist() == [4.0, 1.0, 0.0, 9.0] and not optimizer.state
    with torch.no_grad():
        theta[2] = 1.0
    assert run_step(pieces, SFT(), score, [theta], optimizer, max_grad_norm=0.0).loss == pytest.approx(
        (2 + 1 + 1 + 3) / 4
    )
    assert (theta < torch.tensor([4.0, 1.0, 1.0, 9.0])).all()


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The system refuses to write further into any file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path):
    weight = torch.nn.Parameter(torch.randn(300, 300))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    folder, parameters = tmp_path / "checkpoints", {"weight": weight}
    good = save_checkpoint(folder, parameters, optimizer, Counters(step=1), keep=1, extra=NOTHING)
    kept, moments = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    optimizer.step()
    with (
        files_of_at_most(100_000),
        pytest.raises(StorageError, match=r"Cannot write the checkpoint at .*step-000002"),
    ):
        save_checkpoint(folder, parameters, optimizer, Counters(step=2), keep=1, extra=NOTHING)
    with (
        files_of_at_most(500_000),
        pytest.raises(StorageError, match="Cannot write the checkpoint"),
    ):  # the second file fails
        save_checkpoint(folder, parameters, optimizer, Counters(step=2), keep=1, extra=NOTHING)
    assert list(folder.iterdir()) == [good]
    assert load_checkpoint(good, parameters, optimizer, {}) == (
        Counters(step=1),
        {"estimators": {}, "source": {}},
    )
    assert torch.equal(weight, kept) and torch.equal(optimizer.state[weight]["exp_avg"], moments)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    (tmp_path / ".writing-1").mkdir()
    (tmp_path / ".writing-1" / "policy.safetensors").write_bytes(b"half")
    good = save_checkpoint(
        tmp_path, {"weight": weight}, torch.optim.AdamW([weight]), Counters(step=1), keep=1, extra=NOTHING
    )
    assert list(tmp_path.iterdir()) == [good]


@pytest.mark.parametrize("damage", ["cut", "no state", "not JSON", "another model"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    parameters, optimizer = {"weight": weight}, torch.optim.AdamW([weight])
    path = save_checkpoint(tmp_path, parameters, optimizer, Counters(step=1), keep=1, extra=NOTHING)
    if damage == "cut":
        os.truncate(path / "policy.safetensors", 20)
    elif damage == "another model":
        parameters = {"other": weight}
    else:
        (path / "state.json").write_text("{}x" if damage == "not JSON" else '{"stepp": 1}')
    with pytest.raises(
        StorageError, match="is damaged" if damage != "another model" else "belongs to another model"
    ):
        load_checkpoint(path, parameters, optimizer, {})


@pytest.mark.parametrize("words", [["--save_every", "2"], []], ids=["checkpoint", "final"])
def test_a_full_disk_leaves_nothing_half_written(words, tiny_folder, pairs_file, tmp_path, capsys):
    run = tmp_path / "run"
    with files_of_at_most(120_000):  # metrics fit, 160 kB of weights do not
        code = main(
            [
                "train",
                "--model",
                str(tiny_folder),
                "--data",
                pairs_file,
                "--output",
                str(run),
                "--objective",
                "dpo",
                "--batch_size",
                "2",
                "--json",
                *words,
            ]
        )
    assert code == 4
    assert "Cannot write" in one_line(capsys)
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    left = {str(path.relative_to(run)) for path in run.rglob("*")} - {"checkpoints"}
    whole = {"config.yaml", "manifest.json", "metrics.jsonl", "data_report.json", "status.json"}
    assert left == whole | (set() if words else {"health.json", "tokens.jsonl"})


def train_words(model, data, output, *more) -> list[str]:
    return ["train", "--model", str(model), "--data", data, "--output", str(output), "--json", *more]


def test_an_output_that_cannot_be_used_is_refused_before_work(
    tiny_folder, pairs_file, tmp_path, capsys, monkeypatch
):
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "something").touch()
    file.touch()
    assert main(train_words(tiny_folder, pairs_file, taken)) == 2
    assert "is there already" in one_line(capsys)
    assert main(train_words(tiny_folder, pairs_file, file)) == 2
    assert "is there already" in one_line(capsys)
    assert main(train_words(tiny_folder, pairs_file, file / "below")) == 4
    assert "is a file" in one_line(capsys)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert main(train_words(tiny_folder, pairs_file, tmp_path / "run")) == 4
    assert "There is no room" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tiny_folder, pairs_file, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(train_words(tiny_folder, pairs_file, tmp_path / "locked" / "run")) == 4
    assert "no permission" in one_line(capsys)


def test_there_is_nothing_to_resume(tiny_folder, pairs_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(train_words(tiny_folder, pairs_file, run, "--max_steps", "1")) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 2
    assert "is finished" in one_line(capsys)
    for words in (["--resume"], ["--resume", str(run), "--epochs", "3"], ["--resume", str(tmp_path)]):
        assert main(["train", *words]) == 2
        one_line(capsys)


@pytest.mark.parametrize("status", ['{"state": "running", "step": 0, "message": ""}', "{", "\0\0\0", None])
def test_a_run_killed_after_its_model_was_saved_is_completed(
    status, tiny_folder, pairs_file, tmp_path, capsys
):
    run = tmp_path / "run"
    assert main(train_words(tiny_folder, pairs_file, run, "--max_steps", "1")) == 0
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    if status is None:
        (run / "status.json").unlink()
    else:
        (run / "status.json").write_text(status)
    assert main(["train", "--resume", str(run)]) == 0
    capsys.readouterr()
    assert json.loads((run / "status.json").read_text()) == {"state": "finished", "step": 1, "message": ""}
    assert (run / "report.html").read_text() == page


def test_a_run_without_a_checkpoint_starts_again(tiny_folder, pairs_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(train_words(tiny_folder, pairs_file, run, "--max_steps", "2")) == 0
    rows, weights = timeless(metric_rows(run)), weights_of(run / "final")
    for path in run.iterdir():
        if path.name not in ("config.yaml", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert "starts again" in capsys.readouterr().err
    assert timeless(metric_rows(run)) == rows and same_bits(weights_of(run / "final"), weights)
