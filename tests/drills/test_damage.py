"""Damage to any file of a run or a cache: the same bits as without it, or one sentence; never used in silence."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.train.loop import train
from tests.folders import (
    PAIRS,
    metric_rows,
    same_bits,
    save_tiny_model,
    timeless,
    tiny_config,
    weights_of,
    write_rows,
)

COUNT = 20 if os.environ.get("DRILLS") else 2
"""Corruptions of each file."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(a folder with a run that was stopped at step 3 of 4, what the whole run holds)"""
    root = tmp_path_factory.mktemp("stopped")
    model, data = save_tiny_model(root / "model"), write_rows(root / "pairs.jsonl", PAIRS)
    config = tiny_config(model, data, root / "run", save_every=1, keep_checkpoints=2)
    run = train(config, quiet=True).folder
    whole = timeless(metric_rows(run)), weights_of(run / "final")
    for path in ("final", "report.html", "report.md", "health.json", "tokens.jsonl"):
        shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()
    (run / "status.json").write_text(json.dumps({"state": "interrupted", "step": 3, "message": ""}))
    return root, whole


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut, emptied, a zeroed part, a flipped bit, or not UTF-8."""
    place = chance.randrange(len(content)) if content else 0
    changed = bytearray(content)
    kind = chance.choice(["cut", "empty", "zeroed", "flipped", "flipped", "not text"])
    if kind == "cut":
        return content[:place]
    if kind == "empty" or not content:
        return b""
    if kind == "zeroed":
        changed[place:] = bytes(len(content) - place)
    elif kind == "flipped":
        changed[place] ^= 1 << chance.randrange(8)
    else:
        changed[place] = 0xFF
    return bytes(changed)


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_no_damaged_file_of_a_run_is_used_in_silence(stopped, tmp_path, chance, capsys):
    root, (rows, weights) = stopped
    names = files_of(root / "run")
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "status.json", "data_report.json"} <= set(names)
    refused = same = 0
    for name in names:
        for _ in range(COUNT):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(root / "run", tmp_path / "run")
            path = tmp_path / "run" / name
            content = damaged(path.read_bytes(), chance)
            if content == path.read_bytes():
                continue
            path.write_bytes(content)
            capsys.readouterr()
            status = main(["train", "--resume", str(tmp_path / "run"), "--json"])
            error = capsys.readouterr().err
            if status:
                assert status in (2, 4) and error.count("\n") == 1 and error.startswith("preftune train: "), (
                    error
                )
                refused += 1
            else:
                assert same_bits(weights_of(tmp_path / "run" / "final"), weights), name
                assert timeless(metric_rows(tmp_path / "run")) == rows, name
                same += 1
    print(f"{refused} refused, {same} without effect")
    assert refused > same > 0


def test_the_checkpoint_before_a_damaged_one_is_used_when_asked_to(stopped, tmp_path, capsys):
    root, (rows, weights) = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    latest, words = (
        tmp_path / "run" / "checkpoints" / "step-000003",
        ["train", "--resume", str(tmp_path / "run")],
    )
    with open(latest / "policy.safetensors", "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))
    assert main([*words, "--json"]) == 4
    assert "is damaged; got other content in policy.safetensors" in (error := capsys.readouterr().err)
    assert f"preftune train --resume {tmp_path / 'run'} --skip-damaged" in error
    assert main([*words, "--skip-damaged"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "step-000003 is damaged and was renamed" in told and "resumed at step 2 of 4" in told
    assert same_bits(weights_of(tmp_path / "run" / "final"), weights)
    assert timeless(metric_rows(tmp_path / "run")) == rows


def test_a_damaged_log_is_repaired_when_asked_to(stopped, tmp_path, capsys):
    root, (rows, weights) = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    log, words = tmp_path / "run" / "metrics.jsonl", ["train", "--resume", str(tmp_path / "run")]
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], b"\xff", *lines[2:]]))
    assert main([*words, "--json"]) == 4
    assert "metrics.jsonl is not as the run left it at step 3; got line 2" in capsys.readouterr().err
    assert main([*words, "--allow-changed", "log"]) == 0
    assert "metrics.jsonl was changed after the checkpoint" in " ".join(capsys.readouterr().err.split())
    assert timeless(metric_rows(tmp_path / "run")) == [rows[0], *rows[2:]]
    assert same_bits(weights_of(tmp_path / "run" / "final"), weights)


def test_nothing_in_a_checkpoint_is_unpickled(stopped, tmp_path, capsys):
    root, _ = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    shards = tmp_path / "run" / "checkpoints" / "step-000003" / "shards"
    shards.mkdir()
    mark = tmp_path / "executed"
    (shards / ".metadata").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 4
    assert "a format that executes code when read" in capsys.readouterr().err and not mark.exists()


def test_no_damaged_file_of_a_cache_is_used_in_silence(stopped, tmp_path, chance, monkeypatch):
    root, (rows, weights) = stopped
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    config = tiny_config(root / "model", str(root / "pairs.jsonl"), tmp_path / "warm")
    train(config, quiet=True)
    names = files_of(tmp_path / "cache")
    assert any(name.endswith(".scores") for name in names) and any(name.endswith("tokens") for name in names)
    for count, name in enumerate(names * COUNT):
        path = tmp_path / "cache" / name
        path.write_bytes(damaged(path.read_bytes(), chance))
        run = train(
            tiny_config(root / "model", str(root / "pairs.jsonl"), tmp_path / f"run-{count}"), quiet=True
        )
        assert same_bits(weights_of(run.folder / "final"), weights), name
        assert timeless(metric_rows(run.folder)) == rows, name
