"""The verb `reward`: every column stays, nothing judged is lost, and the result is data for training."""

import json
import os

import pytest
import yaml

from preftune.cli.main import main
from tests.folders import write_rows

ROWS = [
    {
        "prompt": f"What is {k}?",
        "completions": [f"It is {k}.", f"No {k}", "x" * k],
        "ended": [True, False, True],
        "num_tokens": [4, 3, k],
        "budget": 8,
        "answer": f"It is {k}.",
        "pair": [1, 2, 3],
    }
    for k in range(1, 8)
]


@pytest.fixture
def source(tmp_path):
    return write_rows(tmp_path / "samples.jsonl", ROWS)


def rewarded(*words, code=0) -> int:
    assert main(["reward", *map(str, words)]) == code
    return code


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def failure(capsys, *words, code=2) -> str:
    rewarded(*words, code=code)
    err = capsys.readouterr().err
    assert err.startswith("preftune reward: ") and err.count("\n") == 1, err
    return err


def counting(tmp_path, body: str) -> str:
    """A reward that notes each call in calls.txt and then does `body`."""
    calls, path = tmp_path / "calls.txt", tmp_path / "mine.py"
    path.write_text(
        "def score(prompts, completions, **columns):\n"
        f"    with open({str(calls)!r}, 'a') as file:\n        file.write(f'{{len(completions)}}\\n')\n    {body}\n"
    )
    return f"{path}:score"


def test_rewards_beside_every_column(source, tmp_path, capsys):
    output = tmp_path / "scored.jsonl"
    rewarded(source, "--reward", "exact + 0.1*ended", "--output", output)
    found = lines(output)
    parts = {"exact": [1.0, 0.0, 0.0], "ended": [1.0, 0.0, 1.0]}
    assert found == [row | {"rewards": [1.1, 0.0, 0.1], "rewards_parts": parts} for row in ROWS]
    told = capsys.readouterr().out
    assert told.startswith("21 completions of 7 rows; mean 0.4, standard deviation ") and str(output) in told
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "scored.jsonl"}


def test_the_result_as_json(source, tmp_path, capsys):
    rewarded(
        source,
        "--reward",
        "length.mode(mode=4)",
        "--output",
        tmp_path / "o.jsonl",
        "--column",
        "near",
        "--json",
    )
    told = capsys.readouterr()
    found = json.loads(told.out)
    values = [reward for row in ROWS for reward in (0, -1, -abs(row["num_tokens"][2] - 4))]
    assert told.err == "" and found["rows"] == 7 and found["resumed_rows"] == 0
    assert found["report"]["num_asked"] == 21 and found["report"]["num_none"] == 0
    assert found["report"]["mean"] == pytest.approx(sum(values) / 21)
    assert [reward for row in lines(tmp_path / "o.jsonl") for reward in row["near"]] == values


def test_the_same_line_on_the_command_line_and_in_yaml(source, tmp_path):
    reward = r"-1*ended - 2*regex(pattern='^x{2,3}$', whole=true)"
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"data": source, "reward": reward, "output": str(tmp_path / "a.jsonl")})
    )
    rewarded("--config", tmp_path / "run.yaml")
    rewarded(source, f"--reward={reward}", "--output", tmp_path / "b.jsonl")
    found = lines(tmp_path / "a.jsonl")
    assert found == lines(tmp_path / "b.jsonl")
    assert [row["rewards"] for row in found] == [[-1, 0, -3 if k in (2, 3) else -1] for k in range(1, 8)]


def test_columns_arrive_row_by_row(source, tmp_path):
    body = (
        "return [float(a == c) + e + (p == [1, 2, 3]) + t for a, c, e, p, t in zip(columns['answer'], completions, "
        "columns['ended'], columns['pair'], columns['more'])]"
    )
    write_rows(tmp_path / "samples.jsonl", [{**row, "more": [10, 20, 30]} for row in ROWS])
    rewarded(
        source,
        "--reward",
        counting(tmp_path, body),
        "--output",
        tmp_path / "o.jsonl",
        "--per_completion",
        "[more]",
        "--rows_per_call",
        "3",
    )
    assert [row["rewards"] for row in lines(tmp_path / "o.jsonl")] == [[13.0, 21.0, 32.0]] * 7
    assert (tmp_path / "calls.txt").read_text().split() == ["9", "9", "3"]


def test_a_failure_half_way_loses_nothing_and_the_same_command_goes_on(source, tmp_path, capsys):
    flag, output = tmp_path / "broken", tmp_path / "o.jsonl"
    flag.touch()
    bad = f"os.path.exists({str(flag)!r}) and 'No 5' in completions"
    body = f"import os; assert not ({bad}), 'down'; return [1.0] * len(completions)"
    words = (source, "--reward", counting(tmp_path, body), "--output", output, "--rows_per_call", 2)
    err = failure(capsys, *words, "--json", code=3)
    kept = f"4 of 7 rows are kept in {output}.part, and the same command goes on there."
    assert "completion 1, 'No 5'" in err and kept in err
    assert not output.exists() and len(lines(tmp_path / "o.jsonl.part")) == 5
    (tmp_path / "calls.txt").unlink()
    flag.unlink()
    rewarded(*words)
    told = capsys.readouterr()
    assert "goes on after 4 of 7 rows, which were judged before" in told.err
    assert (tmp_path / "calls.txt").read_text().split() == ["6", "3"]  # rows 5 and 6, then 7
    assert [row["prompt"] for row in lines(output)] == [row["prompt"] for row in ROWS]
    assert (
        all(row["rewards"] == [1.0] * 3 for row in lines(output)) and not (tmp_path / "o.jsonl.part").exists()
    )


def test_an_interruption_keeps_what_is_judged(source, tmp_path, capsys):
    body = "assert len(completions) == 3\n    if 'No 3' in completions:\n        raise KeyboardInterrupt\n    return [0.0] * 3"
    words = (
        source,
        "--reward",
        counting(tmp_path, body),
        "--output",
        tmp_path / "o.jsonl",
        "--rows_per_call",
        1,
    )
    rewarded(*words, code=130)
    err = capsys.readouterr().err
    assert "2 of 7 rows are kept in" in err and err.endswith("interrupted.\n")
    assert len(lines(tmp_path / "o.jsonl.part")) == 3


def test_a_crash_in_the_middle_of_a_line_loses_only_that_line(source, tmp_path, capsys):
    output, part = tmp_path / "o.jsonl", tmp_path / "o.jsonl.part"
    flag = tmp_path / "broken"
    body = f"import os; assert os.path.exists({str(flag)!r}) or 'No 4' not in completions; return [1.0] * len(completions)"
    words = (source, "--reward", counting(tmp_path, body), "--output", output, "--rows_per_call", 1, "--json")
    failure(capsys, *words, code=3)
    content = part.read_bytes()
    for cut in (1, len(content.splitlines(True)[-1]) - 1, len(content) - 3):
        part.write_bytes(content[: len(content) - cut])
        flag.touch()
        rewarded(*words)
        found = json.loads(capsys.readouterr().out)
        assert found["resumed_rows"] == max(0, len(content[: len(content) - cut].splitlines()) - 2)
        assert len(lines(output)) == 7
        output.unlink()


def test_what_is_left_of_another_command_is_not_taken(source, tmp_path, capsys):
    output = tmp_path / "o.jsonl"
    mine = counting(tmp_path, "assert 'No 3' not in completions; return [1.0] * len(completions)")
    words = ("--output", output, "--rows_per_call", 1, "--json")
    failure(capsys, source, "--reward", mine, *words, code=3)
    assert "was begun by another command; got reward" in failure(capsys, source, "--reward", "ended", *words)
    other = write_rows(tmp_path / "other.jsonl", ROWS[1:])
    assert "was begun by another command; got rows 7; expected rows 6" in failure(
        capsys, other, "--reward", mine, *words
    )
    (tmp_path / "o.jsonl.part").write_text("nonsense\n")
    assert "is damaged" in failure(capsys, source, "--reward", mine, *words, code=4)
    rewarded(source, "--reward", "ended", *words, "--overwrite")
    assert len(lines(output)) == 7 and not (tmp_path / "o.jsonl.part").exists()
    assert "is there already" in failure(capsys, source, "--reward", "ended", *words)


def test_mistakes_are_told_before_anything_is_judged(source, tmp_path, capsys):
    output = tmp_path / "o.jsonl"
    for words, wanted in (
        (("--reward", "breif"), "Did you mean brief?"),
        (("--reward", "exact(column=gold)"), "lacks columns"),
        (("--reward", "ended", "--column", "ended"), "has a name that cannot be"),
        (("--reward", "ended", "--column", "pair"), "row 1: The row has a column pair already"),
        (("--reward", "ended", "--per_completion", "[nothing]"), "row 1: The field nothing is missing"),
        (
            ("--reward", "ended", "--per_completion", "[answer]"),
            "row 1: The field answer does not fit the completions",
        ),
        (("--reward", "ended", "--rows_per_call", "0"), "rows_per_call is out of range"),
        (("--reward", "ended", "--timeout_s", "0"), "timeout_s is out of range"),
    ):
        assert wanted in failure(capsys, source, *words, "--output", output)
    for number, (row, wanted) in enumerate(
        (
            ({"prompt": "a"}, "The field completions is missing"),
            ({"prompt": "a", "completions": "b"}, "is not a list of texts"),
            ({"prompt": "a", "completions": [["b"]]}, "The field completions[0][0] is not a turn"),
            ({"completions": ["b"]}, "The field prompt is missing"),
            ({"prompt": "a", "completions": ["b"], "num_tokens": 3}, "The field num_tokens does not fit"),
        )
    ):
        bad = write_rows(tmp_path / f"bad{number}.jsonl", [*ROWS, row])
        err = failure(capsys, bad, "--reward", "regex(pattern=a)", "--output", output)
        assert wanted in err and "row 8" in err
    assert "no.jsonl does not exist" in failure(
        capsys, tmp_path / "no.jsonl", "--reward", "ended", "--output", output
    )
    assert "Cannot make the folder" in failure(
        capsys, source, "--reward", "ended", "--output", f"{source}/o.jsonl", code=4
    )
    assert not output.exists() and not (tmp_path / "o.jsonl.part").exists()


def test_a_dialogue_and_odd_characters(tmp_path):
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé?"}],
            "completions": ["Ja ☺"],
            "odd": "\ud800",
            "number": 1e300,
        }
    ]
    body = "assert prompts == ['Hé?'] and columns['prompt_turns'][0][0]['role'] == 'system'; return [None]"
    data = write_rows(tmp_path / "d.jsonl", rows)
    rewarded(data, "--reward", counting(tmp_path, body), "--output", tmp_path / "o.jsonl", "--json")
    assert lines(tmp_path / "o.jsonl") == [{**rows[0], "rewards": [None]}]


def test_training_reads_the_result(tiny_folder, source, tmp_path, capsys):
    """What sample writes, judged with some completions left without an opinion, inspected, and learned from."""
    model, samples, output = ["--model", str(tiny_folder)], tmp_path / "s.jsonl", tmp_path / "o.jsonl"
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Say {k}", "answer": str(k)} for k in range(6)])
    draw = ["--num_completions", "4", "--max_new_tokens", "6"]
    assert main(["sample", *model, "--prompts", prompts, *draw, "--output", str(samples)]) == 0
    row = lines(samples)[0]
    assert (
        row["budget"] == 6 and row["answer"] == "0" and [0 < n <= 6 for n in row["num_tokens"]] == [True] * 4
    )
    body = "return [None if k % 4 == 3 else float(len(c)) for k, c in enumerate(completions)]"
    rewarded(samples, "--reward", f"{counting(tmp_path, body)}", "--output", output)
    assert "6 without an opinion" in capsys.readouterr().out
    assert main(["inspect", str(output), *model, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "scored" in json.dumps(found)
    run = str(tmp_path / "run")
    assert (
        main(
            [
                "train",
                *model,
                "--data",
                str(output),
                "--objective",
                "dpo",
                "--output",
                run,
                "--max_steps",
                "1",
                "--json",
            ]
        )
        == 0
    )
    assert os.path.isdir(run + "/final")


def test_the_tools_of_a_row_are_passed_on(tmp_path):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    rows = [
        {"prompt": "Is it wet?", "completions": ["a", "b"], "tools": tools},
        {"prompt": "Is it dry?", "completions": ["c"]},
    ]
    source = write_rows(tmp_path / "samples.jsonl", rows)
    body = "return [float(len(t or [])) for t in columns['tools']]"
    rewarded(source, "--reward", counting(tmp_path, body), "--output", tmp_path / "scored.jsonl")
    assert [row["rewards"] for row in lines(tmp_path / "scored.jsonl")] == [[1.0, 1.0], [0.0]]


def test_rollouts_of_a_file(tmp_path):
    """The last answer is judged, the turns are a column, and a rollout that failed has no reward."""
    turns = [
        {"role": "assistant", "content": "calc 1+2"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    rows = [
        {
            "prompt": "1+2?",
            "answer": "It is 3.",
            "completions": [turns, turns[:1], "It is 3."],
            "ended_by": ["done", "failed", "done"],
            "turn_rewards": [[0.25, 1.0], [None], [None]],
            "rewards": [1.25, None, None],
        }
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    output, column = tmp_path / "o.jsonl", ("--column", "judged")
    rewarded(data, "--reward", "exact", "--output", output, *column)
    assert lines(output) == [{**rows[0], "judged": [1.0, None, 1.0]}]
    body = "return [float(len(turns or [])) for turns in columns['turns']]"
    rewarded(data, "--reward", counting(tmp_path, body), "--output", output, *column, "--overwrite")
    assert lines(output)[0]["judged"] == [3.0, None, 0.0]
    by_answer = "environment(by_answer=true)"
    rewarded(data, "--reward", by_answer, "--output", output, *column, "--overwrite")
    assert lines(output)[0]["judged_steps"] == [[0.25, 1.0], None, None]


def test_a_rollout_that_ends_with_a_tool(tmp_path, capsys):
    turns = [{"role": "assistant", "content": "calc"}, {"role": "tool", "content": "3"}]
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "1+2?", "completions": [turns]}])
    told = failure(capsys, data, "--reward", "ended", "--output", tmp_path / "o.jsonl")
    assert "completions[0] ends with no answer" in told


@pytest.mark.parametrize("verb", ["reward", "ask"])
def test_a_folder_is_named_as_one(source, tmp_path, capsys, verb):
    words = {"reward": ["--reward", "brief"], "ask": ["--by", "diverse", "--budget", "2"]}[verb]
    assert main([verb, str(tmp_path), *words, "--output", str(tmp_path / "new.jsonl")]) == 2
    assert f"{tmp_path} is a folder; expected a file" in capsys.readouterr().err
