"""`preftune ask`: which completions to label."""

import json

import pytest

from preftune.cli.main import main
from preftune.commands.annotate import questions_of
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.rewards import resolve_reward
from preftune.rewards.call import call_reward
from tests.folders import save_tiny_model, write_rows

ROWS = [
    {
        "prompt": f"Say {k}.",
        "completions": ["one two three", "one two", "nothing", "one two"],
        "rewards": [float(k), 0.0, 5.0, 0.0],
        "ended": [True, False, True, True],
        "topic": "numbers",
    }
    for k in range(1, 5)
]


def asked(tmp_path, *words: str, rows=ROWS, code: int = 0) -> list[dict]:
    data, output = write_rows(tmp_path / "samples.jsonl", rows), tmp_path / "label.jsonl"
    assert main(["ask", data, "--output", str(output), "--overwrite", *words]) == code
    return [json.loads(line) for line in output.read_text().splitlines()] if code == 0 else []


def test_small_margins_come_first(tmp_path, capsys):
    """Row k has rewards k, 0 and 5: margins of k and 5 - k; the smallest are 1 of rows 1 and 4."""
    found = asked(tmp_path, "--budget", "3")
    assert [row["prompt"] for row in found] == ["Say 1.", "Say 4.", "Say 2."]
    assert found[0]["completions"] == ["one two three", "one two"] and found[0]["ended"] == [True, False]
    assert found[1]["completions"] == ["one two three", "nothing"] and found[1]["rewards"] == [4.0, 5.0]
    assert [row["ask_value"] for row in found] == [-1.0, -1.0, -2.0] and found[0]["topic"] == "numbers"
    assert "3 prompts of 4 rows" in capsys.readouterr().out
    questions = questions_of(load_records(str(tmp_path / "label.jsonl"), DataOptions()).records)
    assert (questions[0].first, questions[0].second) == ("one two three", "one two")


def test_margins_of_an_implicit_reward(tiny_folder, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=4)
    spec = f"implicit(policy='{tiny_folder}', reference='{other}')"
    rows = [
        {**row, "completions": row["completions"][:3], "rewards": [0.0] * 3, "ended": [True] * 3}
        for row in ROWS
    ]
    found = asked(tmp_path, "--reward", spec, "--budget", "9", rows=rows)
    reward = resolve_reward(spec)
    for row in found:
        a, b = call_reward(reward, "", [row["prompt"]] * 2, row["completions"], {"ended": [True, True]})
        assert row["ask_value"] == pytest.approx(-abs(a - b), abs=1e-4)
    assert [row["ask_value"] for row in found] == sorted((r["ask_value"] for r in found), reverse=True)


def test_an_ensemble_and_likeness(tmp_path):
    (tmp_path / "two.py").write_text(
        "def one(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
        "def two(prompts, completions, **columns):\n    return [-float(len(c)) for c in completions]\n"
    )
    path = tmp_path / "two.py"
    found = asked(tmp_path, "--by", "ensemble", "--reward", f"1*{path}:one + 1*{path}:two", "--budget", "1")
    assert found[0]["completions"] == ["one two three", "one two"] and found[0]["ask_value"] > 0.49
    found = asked(tmp_path, "--by", "diverse", "--budget", "1")
    # likeness to all four: 0.7 of "one two", which was drawn twice, 0.65 of "one two three", 0.25 of "nothing"
    assert found[0]["completions"] == ["one two", "nothing"]
    assert found[0]["ask_value"] == pytest.approx((0.7 + 0.25) / 2)


@pytest.mark.parametrize(
    ("words", "rows", "told"),
    [
        (["--by", "diverse", "--reward", "brief"], ROWS, "reward has no effect"),
        (["--by", "ensemble"], ROWS, "one term for each member"),
        (["--by", "ensemble", "--reward", "ended"], ROWS, "at least two members"),
        (["--diversity", "2"], ROWS, "diversity has no effect"),
        ([], [{"prompt": "p", "completions": ["a", "b"]}], "no rewards to take margins of"),
        ([], [{"prompt": "p", "completions": ["a", "a"], "rewards": [1, 2]}], "nothing to ask about"),
        ([], [{"prompt": "p", "chosen": "a", "rejected": "b"}], "gives no question"),
        ([], [{"prompt": None, "completions": ["a", "b"], "rewards": [1, 2]}], "row 1 gives no question"),
        ([], [{"prompt": "p", "completions": ["a", "b"], "rewards": [1, {}]}], "row 1: The field rewards"),
    ],
)
def test_mistakes(words, rows, told, tmp_path, capsys):
    data = write_rows(tmp_path / "samples.jsonl", rows)
    code = main(["ask", data, "--output", str(tmp_path / "label.jsonl"), *words])
    err = capsys.readouterr().err
    assert code != 0 and told in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "label.jsonl").exists()
