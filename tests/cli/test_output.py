"""What all commands share: tables, JSON Lines, bare words, `--resume`, outputs that are there already."""

import json

import pytest

from preftune.cli.checks import check_new_file, name_bare_words, resumed_folder
from preftune.cli.output import PIPED_WIDTH, make_table, print_table
from preftune.errors import ConfigError
from preftune.storage import rows_to_jsonl, write_jsonl

LONG = "a finding with many words in it, " * 20


def test_a_piped_table_is_no_wider_than_a_page(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("name", "what it says"), [("first", LONG), ("second", "short")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= PIPED_WIDTH and sum("finding" in line for line in lines) > 5
    assert lines[-1].split() == ["second", "short"]


def test_the_width_of_a_pipe_is_that_of_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_table(("name", "what it says"), [("first", LONG)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_cells_command_no_terminal(capsys):
    print_table(("name",), [("\x1b[31mred[bold]",)])
    assert "\x1b" not in (out := capsys.readouterr().out) and "[bold]" in out
    assert make_table(("a", "b"), unbroken=("b",)).columns[1].no_wrap


ROWS = [{"text": "½ 😀"}, {"text": "lone \ud83d"}, {"text": "ascii", "other": {1}}]


def test_every_row_becomes_a_line(tmp_path):
    """Text stays readable; a lone surrogate, which UTF-8 cannot hold, is an escape."""
    write_jsonl(tmp_path / "rows.jsonl", ROWS, "write the rows")
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text == rows_to_jsonl(ROWS) and "½ 😀" in text and "\\ud83d" in text
    assert [json.loads(line)["text"] for line in text.splitlines()] == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], []),
        (["--json"], ["--json"]),
        (["a", "my run", "--json", "x"], ["--runs", '["a", "my run"]', "--json", "x"]),
    ],
)
def test_bare_words_are_a_list(words, named):
    assert name_bare_words(words, "runs") == named


@pytest.mark.parametrize(
    ("words", "folder"),
    [([], None), (["--data", "x"], None), (["--resume", "run"], "run"), (["--resume=my run"], "my run")],
)
def test_the_folder_of_a_run_that_is_resumed(words, folder):
    assert resumed_folder(words, "train") == folder


@pytest.mark.parametrize(
    "words", [["--resume"], ["--resume="], ["--resume", "a", "b"], ["--resume=a", "--seed", "1"]]
)
def test_resume_takes_a_folder_and_nothing_else(words):
    with pytest.raises(
        ConfigError, match=r"takes a run folder and nothing else.*preftune train --resume RUN"
    ):
        resumed_folder(words, "train")


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    file = tmp_path / "rows.jsonl"
    check_new_file(str(file), overwrite=False)
    file.touch()
    check_new_file(str(file), overwrite=True)
    with pytest.raises(ConfigError, match=r"is there already.*--overwrite"):
        check_new_file(str(file), overwrite=False)
