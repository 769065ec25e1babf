"""Completion scripts, run by the shells themselves."""

import shutil
import subprocess

import pytest

from preftune.cli.main import main
from preftune.commands.completion import completion_script


def completed(words, shell="bash"):
    """What bash offers for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = (
        f"{completion_script('bash')}\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words) - 1}\n_preftune\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["preftune", "tra"], ["train", "train-reward-model"]),
        (["preftune", "train", "--learning"], ["--learning_rate"]),
        (["preftune", "train", "--optim.learning"], ["--optim.learning_rate"]),
        (["preftune", "train", "--objective", "cpo"], ["cpo", "cpo-simpo"]),
        (["preftune", "eval", "--refer"], ["--reference"]),
    ],
)
def test_bash(words, offered):
    assert completed(words) == offered


def test_files_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").touch()
    assert completed(["preftune", "train", "--data", "pai"]) == ["pairs.jsonl"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_the_script(shell):
    script = completion_script(shell)
    assert "cpo-simpo" in script and "learning_rate" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0


def test_the_command_prints_it(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion_script("bash")
