"""The chat: answers as they come, histories, commands, two models at once; and `env`."""

import io
import json

import pytest

from preftune.cli.main import main
from preftune.commands.chat import Answer, hold_chat


def chat(monkeypatch, capsys, text, *words):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["chat", *map(str, words)]) == 0
    return capsys.readouterr()


def echo(turns, seed, show):
    """Says how many turns it was given, and the roles."""
    text = " ".join(turn.role[0] for turn in turns)
    show(text)
    return Answer(text=text, ended=turns[-1].content != "long")


def test_a_model_answers_and_an_answer_that_was_cut_is_marked(monkeypatch, capsys, tiny_folder):
    out, err = chat(monkeypatch, capsys, "Hi\nMore\n", tiny_folder, "--max_new_tokens", 3)
    assert out.count("\n") == 2 and "[cut off by max_new_tokens]" in out and "/help" in err


def test_what_is_streamed_is_the_answer(monkeypatch, capsys, tiny_folder, tmp_path):
    saved = tmp_path / "c.jsonl"
    out, _ = chat(monkeypatch, capsys, f"Hi\n/save {saved}\n", tiny_folder, "--max_new_tokens", 12)
    turns = json.loads(saved.read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert out.removesuffix("\n").removesuffix(" [cut off by max_new_tokens]") == turns[1]["content"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\nb\n", ["u", "u a u"]),
        ("a\n/undo\nb\n", ["u", "u"]),
        ("a\n/reset\nb\n", ["u", "u"]),
        ("/system Be brief.\na\n/reset\nb\n", ["s u", "s u"]),
        ("/system x\n/system\na\n", ["u"]),
        ("/undo\na\nexit\nb\n", ["u"]),
        ("long\n", ["u [cut off by max_new_tokens]"]),
        ("/nothing\n/save\na\n", ["u"]),
    ],
)
def test_histories_and_commands(monkeypatch, capsys, text, wanted):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert hold_chat({"": echo}, 0, None) == 0
    assert capsys.readouterr().out.splitlines() == wanted


def test_two_models_have_a_history_each(monkeypatch, capsys):
    def other(turns, seed, show):
        return None if len(turns) == 1 else echo(turns, seed, show)

    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    hold_chat({"[one] ": echo, "[two] ": other}, 0, None)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "[one] u" and "[one] u a u" in out and err.count("withholds") == 2


def test_a_file_is_not_overwritten_by_save(monkeypatch, capsys, tmp_path):
    there = tmp_path / "there.jsonl"
    there.write_text("precious")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"a\n/save {there}\n"))
    hold_chat({"": echo}, 0, None)
    assert there.read_text() == "precious" and "exists already" in capsys.readouterr().err


def test_a_run_folder_stands_for_its_model(monkeypatch, capsys, tiny_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: x\n")
    (tmp_path / "run" / "final").symlink_to(tiny_folder)
    out, _ = chat(monkeypatch, capsys, "Hi\n", tmp_path / "run", "--max_new_tokens", 2)
    assert out


def test_env_tells_versions_and_no_paths(capsys):
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"].startswith("2.") and not any("/" in value for value in facts.values())
