"""The command line: light to start, one line for every error with the right exit status, and no text that
commands a terminal.
"""

import json
import os
import shlex
import subprocess
import sys

import pytest

from preftune.cli.main import HELP, VERBS, main
from tests.folders import PAIRS, save_tiny_model, write_rows
from tests.fresh import run_fresh

ACTIONS = {
    "lab": ("run", "list", "show", "all", "tune"),
    "diagnose": ("run", "data"),
}  # of verbs that have some
EVIL = "\x1b[31mred\x07\x1b]0;title\x07\x9b1m\u202eback\x7f"


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, preftune, preftune.cli.main\n"
        "assert preftune.cli.main.main(['--help']) == 0 and preftune.cli.main.main(['--version']) == 0 and preftune.cli.main.main(['x']) == 2\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'datasets', 'rich', 'yaml', 'jsonargparse', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert run_fresh(code).startswith(HELP)


def test_no_garbage_is_looked_for_while_a_verb_is_imported_nor_ever_among_its_libraries():
    code = (
        "import gc, sys, preftune.cli.main\n"
        "looked = []\n"
        "gc.callbacks.append(lambda phase, about: looked.append(about))\n"
        "preftune.cli.main._module_of('inspect')\n"
        "assert 'torch' in sys.modules and not looked, len(looked)\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()\n"
        "frozen = gc.get_freeze_count()\n"
        "preftune.cli.main._module_of('inspect')\n"
        "assert gc.get_freeze_count() == frozen, 'what was made since is frozen, too'\n"
        "gc.disable()\n"
        "preftune.cli.main._module_of('merge')\n"
        "assert not gc.isenabled()\n"
        "assert 'peft' not in sys.modules"
    )
    run_fresh(code)


def test_the_installed_command_is_this_one():
    done = subprocess.run(
        [sys.executable, "-m", "preftune.cli.main", "trian"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Unknown command 'trian'. Did you mean preftune train?" in done.stderr


def test_help_names_every_verb(capsys):
    for words in ([], ["help"], ["-h"], ["--help"]):
        assert main(words) == 0
        assert capsys.readouterr().out == HELP
    assert all(f"\n  {verb} " in HELP for verb in VERBS)


def failure(capsys, *words, code=2) -> str:
    assert main([str(word) for word in words]) == code
    err = capsys.readouterr().err
    assert (
        err.startswith("preftune ") and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err
    )
    return err


def test_every_mistake_is_one_line(tiny_folder, pairs_file, tmp_path, capsys):
    run, model = tmp_path / "run", ["--model", tiny_folder]
    empty, broken = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl"
    empty.touch()
    broken.write_text('{"prompt": "a", "chosen": "b"\n')
    train = ["train", *model, "--output", run, "--json"]
    for words, wanted in (
        ((), "--data is missing"),
        (("--data", "/nowhere"), "/nowhere does not exist"),
        (("--data", empty), "is empty"),
        (("--data", broken), "broken.jsonl, row 1"),
        (("--data", tmp_path), "broken.jsonl"),
        (("--data", pairs_file, "--format", "labels"), "row 1"),
        (("--data", pairs_file, "--max_length", "3"), "no group is left"),
        (("--data", pairs_file, "--device", "nothing"), "device nothing is not available"),
        (
            ("--data", pairs_file, "--lora_r", "2", "--target_modules", "[nothing]"),
            "names no layer of the model",
        ),
        (
            ("--data", pairs_file, "--lora_r", "2", "--target_modules", "[lm_head]"),
            "an adapter on the head is not supported",
        ),
        (("--data", pairs_file, "--reference.model", "/nowhere"), "There is no model"),
    ):
        assert wanted in failure(capsys, *train, *words), words
        assert not run.exists()
    failure(capsys, "train", "--model", tmp_path, "--data", pairs_file, "--output", run, "--json")
    failure(capsys, "train", "--model", "/nowhere", "--data", pairs_file, "--output", run, "--json")
    failure(capsys, "inspect", "/nowhere", *model)
    failure(capsys, "inspect", pairs_file, "stray", *model)
    failure(capsys, "sample", *model, "--prompts", "/nowhere")
    failure(
        capsys,
        "sample",
        *model,
        "--prompts",
        pairs_file,
        "--output",
        f"{pairs_file}/x",
        "--json",
        "--max_new_tokens",
        "2",
        code=4,
    )
    failure(
        capsys,
        "eval",
        *model,
        "--prompts",
        pairs_file,
        "--reference",
        tiny_folder,
        "--reward",
        "nothing",
        "--json",
    )
    failure(
        capsys,
        "eval",
        *model,
        "--prompts",
        pairs_file,
        "--reference",
        tiny_folder,
        "--reward",
        "json:dumps",
        "--json",
        "--max_new_tokens",
        "2",
        code=3,
    )
    failure(
        capsys,
        "eval",
        *model,
        "--prompts",
        pairs_file,
        "--reference",
        tiny_folder,
        "--reward",
        "exact(column=gold)",
        "--json",
    )
    failure(capsys, "report", "/nowhere")
    failure(capsys, "report", tmp_path)
    failure(capsys, "demo", "--num_held_out", "0")
    failure(capsys, "demo", "--model", tiny_folder, "--output", tmp_path)  # there are files in it
    assert {path.name for path in tmp_path.iterdir()} == {"empty.jsonl", "broken.jsonl"}


def controls(text: str) -> set[str]:
    """Characters that a terminal would obey, those of a line's end left out; the pseudo-colors of our own
    aside.
    """
    return {
        c
        for c in text
        if (ord(c) < 32 and c not in "\n\t\r") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u202d\u2066"
    }


def test_nothing_commands_the_terminal(tiny_folder, tmp_path, capsys):
    """Rows, columns, file names and prompts with escape sequences; in results, notes and errors."""
    rows = [
        {"prompt": f"{k} {EVIL}", "chosen": f"{EVIL} yes {k}", "rejected": f"{EVIL} no {k}", EVIL: EVIL}
        for k in range(4)
    ]
    data = write_rows(tmp_path / f"evil{EVIL}.jsonl", rows)
    columns = write_rows(tmp_path / f"columns{EVIL}.jsonl", [{EVIL: "a", f"x{EVIL}": "b"}])
    group = {"prompt": EVIL, "completions": ["a", EVIL], "rewards": [0, 1], EVIL: 1}
    scored = write_rows(tmp_path / f"scored{EVIL}.jsonl", [group])
    wrong = write_rows(
        tmp_path / f"wrong{EVIL}.jsonl", [{"prompt": "p", "chosen": "c", "rejected": {EVIL: EVIL}}]
    )
    judged = write_rows(
        tmp_path / f"judged{EVIL}.jsonl", [{"prompt": EVIL, "completions": [EVIL], EVIL: EVIL}]
    )
    cut = tmp_path / f"cut{EVIL}.jsonl"
    cut.write_text('{"prompt": "' + EVIL)
    model = ["--model", str(tiny_folder)]
    draw = ["--max_new_tokens", "2", "--max_rows", "2"]
    run = str(tmp_path / f"run{EVIL}")
    for code, words in (
        (0, ["inspect", data, *model]),
        (0, ["inspect", data, *model, "--json"]),
        (2, ["inspect", columns, *model]),
        (2, ["inspect", wrong, *model]),
        (2, ["inspect", str(cut), *model]),
        (0, ["sample", *model, "--prompts", data, *draw]),
        (0, ["sample", *model, "--prompts", data, *draw, "--json"]),
        (0, ["eval", *model, "--data", data, "--reference", str(tiny_folder)]),
        (0, ["eval", *model, "--prompts", data, "--reference", str(tiny_folder), "--reward", "brief", *draw]),
        (2, ["sample", "--model", EVIL, "--prompt", "x"]),
        (2, [EVIL]),
        (2, ["train", f"--{EVIL}", "3"]),
        (2, ["train", "--objective", EVIL]),
        (2, ["report", str(tmp_path / EVIL)]),
        (2, ["objectives", EVIL]),
        (2, ["curves", EVIL]),
        (2, ["select", data, "--output", str(tmp_path / f"{EVIL}.jsonl")]),
        (0, ["select", scored, "--output", str(tmp_path / f"{EVIL}.jsonl")]),
        (2, ["merge", EVIL, EVIL, "--output", EVIL]),
        (2, ["train-reward-model", "--data", data, "--model", EVIL, "--output", run]),
        (0, ["curves", "sft", "--output", str(tmp_path / f"{EVIL}.png")]),
        (0, ["train", *model, "--data", data, "--output", run, "--max_steps", "1"]),
        (2, ["train", "--resume", run]),
        (2, ["train", *model, "--data", data, "--output", run]),
        (0, ["reward", judged, "--reward", "regex(pattern=x)", "--output", f"{judged}.out"]),
        (2, ["reward", judged, "--reward", EVIL, "--output", f"{judged}.new"]),
        (2, ["reward", wrong, "--reward", "ended", "--output", f"{judged}.new"]),
    ):
        assert main(words) == code, words
        told = capsys.readouterr()
        assert told.out or told.err
        assert not controls(told.out) and not controls(told.err), (
            words,
            controls(told.out) | controls(told.err),
        )


def test_text_of_a_model_is_cleaned(tmp_path, capsys):
    """A model that answers nothing but escape characters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny_model(tmp_path / "model")
    token = AutoTokenizer.from_pretrained(folder)("\x1b")["input_ids"][0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = -1.0
        model.lm_head.weight[token, :] = 50.0
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    capsys.readouterr()
    assert main(["sample", "--model", str(folder), "--prompt", "Hi", "--max_new_tokens", "4"]) == 0
    told = capsys.readouterr()
    assert not controls(told.out) and "cut off" in told.out
    assert main(["sample", "--model", str(folder), "--prompt", "Hi", "--max_new_tokens", "4", "--json"]) == 0
    told = capsys.readouterr()
    assert not controls(told.out)
    assert json.loads(told.out)["completions"] == ["\x1b" * 4]


def test_json_is_all_there_is_on_standard_output(tiny_folder, pairs_file, tmp_path, capsys):
    run = str(tmp_path / "run")
    model, draw = ["--model", str(tiny_folder)], ["--max_new_tokens", "2"]
    samples = write_rows(tmp_path / "samples.jsonl", [{"prompt": "p", "completions": ["a", "b"]}])
    for words in (
        ["train", *model, "--data", pairs_file, "--output", run, "--max_steps", "1"],
        ["inspect", pairs_file, *model],
        ["eval", *model, "--data", pairs_file, "--reference", str(tiny_folder)],
        [
            "eval",
            *model,
            "--prompts",
            pairs_file,
            "--reference",
            str(tiny_folder),
            "--reward",
            "brief",
            "--max_rows",
            "1",
            *draw,
        ],
        ["sample", *model, "--prompt", "Hi", *draw],
        ["report", run],
        ["reward", samples, "--reward", "regex(pattern=a)", "--output", str(tmp_path / "scored.jsonl")],
        ["objectives"],
        ["objectives", "bnf"],
        ["curves", "bnf", "--output", str(tmp_path / "curves.png")],
    ):
        assert main([*words, "--json"]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out) and told.err == "", words
    assert main(["sample", *model, "--prompts", pairs_file, *draw, "--json", "--num_completions", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PAIRS]
    assert all(len(row["completions"]) == len(row["ended"]) == 2 for row in rows)


def test_a_chat_remembers_its_turns(tiny_folder, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAnd you?\n\n"))
    assert main(["sample", "--model", str(tiny_folder), "--max_new_tokens", "3"]) == 0
    told = capsys.readouterr()
    assert told.err.count("> ") == 3 and told.out


def test_samples_in_a_file(tiny_folder, tmp_path, capsys):
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Grüße \U0001f600"}, {"prompt": "b"}])
    out = tmp_path / "samples.jsonl"
    assert (
        main(
            [
                "sample",
                "--model",
                str(tiny_folder),
                "--prompts",
                data,
                "--output",
                str(out),
                "--max_new_tokens",
                "2",
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["Grüße \U0001f600", "b"]
    assert "2 prompts with 1 completions each" in capsys.readouterr().out


def test_skipped_rows_are_counted(tiny_folder, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [*PAIRS, {"prompt": "p", "chosen": "c", "rejected": 3}])
    words = ["--model", str(tiny_folder), "--bad_rows", "skip", "--max_new_tokens", "2"]
    assert main(["sample", "--prompts", data, *words]) == 0
    assert "skipped 1 rows" in capsys.readouterr().err
    run = tmp_path / "run"
    assert main(["train", *words[:-2], "--data", data, "--output", str(run), "--max_steps", "1"]) == 0
    assert "skipped 1 rows" in capsys.readouterr().err
    assert json.loads((run / "bad_rows.jsonl").read_text())["row"] == 9


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m preftune.cli.main --help | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        *([verb] for verb in VERBS if verb not in ACTIONS),
        *([verb, action] for verb, actions in ACTIONS.items() for action in actions),
    ],
)
def test_every_command_has_help(words, capsys):
    try:
        assert main([*words, "--help"]) == 0
    except SystemExit as ended:  # the actions of the laboratory
        assert ended.code in (0, None)
    told = capsys.readouterr().out
    assert f"usage: preftune {' '.join(words)}" in told and "--config" in told


@pytest.mark.parametrize("command", ["sample", "compare", "iterate", "eval", "train-reward-model", "lab"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_are_refused_once_where_they_make_no_sense(command, rank, monkeypatch, capsys):
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main([command, "run"]) == 2
    said = capsys.readouterr().err
    assert ("got '2' processes of torchrun" in said and said.count("\n") == 1) if rank == "0" else said == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stop_is_told_by_the_first_process_of_a_host(rank, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", rank)
    stops = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(5)\ndef score(): ...\n"
    (tmp_path / "stops.py").write_text(stops, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completions": ["b"]}\n', encoding="utf-8")
    words = ["--data", str(tmp_path / "a.jsonl"), "--reward", f"{tmp_path / 'stops.py'}:score"]
    assert main(["reward", *words, "--output", str(tmp_path / "o.jsonl")]) == 130
    assert capsys.readouterr().err.count("interrupted") == (rank == "0")


def test_a_mistake_on_another_host_is_told_there(monkeypatch, capsys, tmp_path):
    for name, value in {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--resume", str(tmp_path / "absent")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_an_error_of_the_system_is_one_sentence(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    assert main(["inspect", "x" * 5000, "--model", str(model)]) == 4
    assert "got File name too long" in (said := capsys.readouterr().err) and said.count("\n") == 1
