"""Every command of docs/systems.md runs on a tiny model; a row that is added to the page is tested by this."""

import shutil
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError
from preftune.train.options import TrainConfig
from tests.docs.systems_commands import objective_flags, rows_with_commands, words_of, write_files
from tests.folders import save_tiny_model

ROWS = rows_with_commands()


def test_the_page_has_commands():
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.work.split(" (")[0].replace(" ", "-"))
def test_commands_of_the_row_run(row, tiny_folder, tmp_path, monkeypatch, capsys):
    sandboxed = "code(" in str(row.commands) or "--environment python" in str(row.commands)
    if sandboxed and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    write_files(tmp_path)
    if "BASE" in str(row.commands):
        save_tiny_model(tmp_path / "BASE", seed=1)
    monkeypatch.chdir(tmp_path)
    for number, command in enumerate(row.commands):
        words = words_of(command, str(tiny_folder))
        output = Path(words[words.index("--output") + 1]) if "--output" in words else tmp_path / "none"
        if output.is_dir():  # an alternative to the command before
            shutil.rmtree(output)
        status = main(words)
        printed = capsys.readouterr()
        assert status == 0, f"command {number + 1}: {' '.join(words)}\n{printed.out}\n{printed.err}"


def test_flags_of_objectives_are_settings_of_a_run():
    """`tests/train/test_every_objective.py` runs every objective."""
    flags = objective_flags()
    assert len(flags) > 60
    for line in flags:
        data = "pairs.jsonl --source hybrid" if "--source" not in line else "pairs.jsonl"
        plain = f"--data pairs.jsonl --output RUN {line}"
        drawn = f"--data prompts.jsonl --source on-policy --reward brief --output RUN {line}"
        hybrid = f"--data {data} --output RUN {line}"
        faults = [fault for words in (plain, drawn, hybrid) if (fault := _fault(words))]
        assert len(faults) < 3, f"{line}: {faults}"


def _fault(words: str) -> str:
    try:
        parse_settings(TrainConfig, words.split(), "preftune train")
    except ConfigError as error:
        return str(error)
    return ""
