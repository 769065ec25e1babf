"""The verb select: what it writes is what train reads, nothing is lost, and everything left out is told."""

import json

import pytest

from preftune.cli.main import main
from preftune.commands.select import SelectConfig, select
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.errors import ConfigError, DataError
from preftune.types import Message
from tests.folders import SCORED, save_tiny_model, write_rows

ROWS = [
    {
        "id": 1,
        "prompt": "p",
        "completions": ["a", "b", "c"],
        "rewards": [0.1, 0.9, None],
        "ended": [True, False, True],
    },
    {
        "id": 2,
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "completions": ["d", "e", "f"],
        "rewards": [0.5, 0.2, 0.1],
        "ended": [True, True, True],
    },
    {"id": 3, "prompt": "r", "completions": ["g", "h"], "rewards": [1, 1], "ended": [True, True]},
]


def selected(tmp_path, rows=ROWS, **settings):
    """(result, rows written, records as they are read again)"""
    data = write_rows(tmp_path / "scored.jsonl", rows)
    result = select(SelectConfig(data=data, output=str(tmp_path / "out.jsonl"), **settings))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    return result, written, load_records(tmp_path / "out.jsonl", DataOptions())


def test_pairs(tmp_path):
    result, written, again = selected(tmp_path)
    assert again.format == "pairs" and result.num_rows == 2
    assert written[0] == {
        "id": 1,
        "prompt": "p",
        "chosen": "b",
        "rejected": "a",
        "chosen_reward": 0.9,
        "rejected_reward": 0.1,
        "ended": [False, True],
    }
    second = again.records[1]
    assert second.prompt == (Message(role="system", content="s"), Message(role="user", content="q"))
    assert second.completions == ("d", "f") and second.pairs == ((0, 1),) and second.columns["id"] == 2
    assert again.records[0].ended == (False, True)
    assert result.lines() == [
        "3 groups with 8 completions",
        "dropped 1 group: all rewards are equal",
        "left out 1 completion: no reward",
        "left out 1 completion: not selected",
        f"2 groups, 4 completions, 2 pairs: 2 rows of pairs in {tmp_path}/out.jsonl",
    ]


@pytest.mark.parametrize(("level", "rejected"), [("-2", "d"), ("0", "c"), ("1", "b")])
def test_the_level_of_the_rejected_completion(tmp_path, capsys, level, rejected):
    """Rewards 10, 6.5, 4.5, 0 have mean 5.25 and deviation 3.6: the targets are -2, 5.25 and 8.9."""
    rows = [{"prompt": "p", "completions": ["a", "b", "c", "d"], "rewards": [10, 6.5, 4.5, 0]}]
    data, output = write_rows(tmp_path / "scored.jsonl", rows), tmp_path / "out.jsonl"
    words = f"select {data} --selection best-vs-level --level {level} --output {output}"
    assert main(words.split()) == 0
    row = json.loads(output.read_text(encoding="utf-8"))
    assert (row["chosen"], row["rejected"]) == ("a", rejected)


def test_level_is_refused_elsewhere(tmp_path, capsys):
    data = write_rows(tmp_path / "scored.jsonl", ROWS)
    assert main(["select", str(data), "--level", "-2", "--output", str(tmp_path / "out.jsonl")]) == 2
    assert "level has no effect on the selection best-vs-worst" in capsys.readouterr().err


def test_labels(tmp_path):
    result, written, again = selected(tmp_path, selection="label-by-mean")
    assert again.format == "labels"
    assert [
        (row["prompt"] if row["id"] == 1 else "", row["completion"], row["label"], row["reward"])
        for row in written
    ] == [("p", "a", -1, 0.1), ("p", "b", 1, 0.9), ("", "d", 1, 0.5), ("", "e", -1, 0.2), ("", "f", -1, 0.1)]
    assert [record.ended for record in again.records[:2]] == [(), ()] or again.records[1].ended == (False,)
    assert result.counts["preferred_out"] == 2 and result.counts["dispreferred_out"] == 3


def test_groups(tmp_path):
    _, written, again = selected(tmp_path, selection="all-pairs", write="groups")
    assert again.format == "groups" and written[1]["pairs"] == [[0, 1], [0, 2], [1, 2]]
    assert again.records[1].rewards == (0.5, 0.2, 0.1) and again.records[0].ended == (True, False)
    (tmp_path / "out.jsonl").unlink()
    _, written, again = selected(tmp_path, selection="dynamic-sampling")
    assert again.format == "groups" and len(written) == 2 and written[0]["completions"] == ["a", "b"]
    assert again.records[0].rewards == (0.1, 0.9)
    (tmp_path / "out.jsonl").unlink()
    _, written, again = selected(tmp_path, selection="best-of-n", write="groups")
    assert [record.labels for record in again.records] == [(1,)] * 3


def test_a_price_on_length(tmp_path):
    """The long one leads by 2 and is 8 characters longer: it changes sides at 0.25."""
    rows = [{"prompt": "p", "completions": ["long answer", "no."], "rewards": [2.0, 0.0]}]
    for penalty, chosen, told in ((0.2, "long answer", 0.2), (0.3, "no.", 0.3), (None, "long answer", None)):
        result, written, _ = selected(tmp_path, rows, length_penalty=penalty, overwrite=True)
        assert (written[0]["chosen"], result.length_penalty) == (chosen, told)
    assert written[0]["chosen_reward"] == 2.0
    result, written, _ = selected(tmp_path, rows, length_penalty=0.3, overwrite=True)
    assert written[0]["chosen_reward"] == pytest.approx(-0.9)  # 0 - 0.3 * 3
    rows += [{"prompt": "q", "completions": ["an answer", "no."], "rewards": [9.0, 0.0]}]
    result, _, _ = selected(tmp_path, rows, length_penalty="auto", overwrite=True)
    assert (
        result.length_penalty == pytest.approx(0.25)
        and "length penalty 0.25 for each character" in result.lines()
    )


def test_wrong_answers_are_cut_at_their_first_pit(tmp_path):
    """The lowest value, and the first of equal ones; correct answers and those without values stay whole."""
    right, wrong, other = "a\nb\nc", "a\n\nx\ny\n", "u\nv"
    rows = [
        {
            "prompt": "p",
            "completions": [right, wrong, other, "z\nz"],
            "rewards": [1.0, 0.0, 0.0, 0.0],
            "q": [1.5, 0.5, 0.4, None],
            "q_steps": [[0.5, 0.0, 1.0], [0.5, 0.0, 0.0], [0.4, 0.0], None],
        },
        {"prompt": "s", "completions": [right], "rewards": [1.0], "q_steps": [[1, 1, 1]]},
        {"prompt": "s", "completions": [wrong], "rewards": [0.0], "q_steps": [[0, 1, 1]]},
    ]
    _, found, _ = selected(tmp_path, rows, selection="all-pairs", first_pit="q_steps")
    assert [(row["chosen"], row["rejected"], row["ended"]) for row in found] == [
        (right, "a\n\nx", [True, False]),
        (right, other, [True, True]),
        (right, "z\nz", [True, True]),
        (right, "a", [True, False]),
    ]
    for name in "bc":
        (tmp_path / name).mkdir()
    short = [rows[0] | {"q_steps": [[0.5], [0.1], [0.2], None]}]
    with pytest.raises(DataError, match=r"the values do not fit the steps .* expected 3 numbers"):
        selected(tmp_path / "b", short, first_pit="q_steps")
    with pytest.raises(DataError, match="the column none does not fit the completions; got no such column"):
        selected(tmp_path / "c", rows, first_pit="none")


def test_single_rows_of_a_prompt_are_joined(tmp_path):
    rows = [{"prompt": "p", "completion": text, "reward": k} for k, text in enumerate("abc")]
    result, written, _ = selected(tmp_path, rows)
    assert (written[0]["chosen"], written[0]["rejected"], result.joined) == ("c", "a", 2)


def test_trajectories(tmp_path):
    def trajectory(text):
        return [
            {"role": "assistant", "content": "look"},
            {"role": "tool", "content": text},
            {"role": "assistant", "content": text},
        ]

    rows = [{"prompt": "p", "completions": [trajectory("x"), trajectory("y")], "rewards": [0, 1]}]
    _, written, again = selected(tmp_path, rows, write="groups")
    assert (
        written[0]["completions"][1] == trajectory("y") and again.records[0].completions[1][2].content == "y"
    )


@pytest.mark.parametrize("column", ["chosen", "chosen_reward", "probability"])
def test_a_column_that_would_change_the_meaning_is_refused(tmp_path, column):
    with pytest.raises(DataError, match=r"Rename|--rows\.ignore"):
        selected(tmp_path, [{**ROWS[0], column: 0.3}])
    assert not (tmp_path / "out.jsonl").exists()


def test_mistakes(tmp_path, capsys):
    data = write_rows(tmp_path / "scored.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    for words, wanted in (
        (["--selection", "best"], "There is no such selection"),
        (
            ["--selection", "best-of-n", "--fraction", "0.5"],
            "fraction has no effect on the selection best-of-n",
        ),
        (["--write", "labels"], "makes pairs, which cannot be written so"),
        (["--output", "out.csv"], "ends in .jsonl"),
        (["--min_gap", "5"], "leaves nothing of"),
        (["--rows.max_length", "5"], "rows.max_length has no effect"),
        (["--selection", "rso"], "none would be rejected"),
        (["--seed", "-1"], "seed is out of range"),
        (["--length_penalty", "0"], "length_penalty is out of range"),
        (["--length_penalty", "some"], "Invalid value for length_penalty"),
    ):
        output = [] if "--output" in words else ["--output", str(out)]
        assert main(["select", data, *output, *words]) == 2, words
        told = capsys.readouterr().err
        assert wanted in told and told.count("\n") == 1
        assert not out.exists()
    bare = write_rows(tmp_path / "bare.jsonl", [{"prompt": "a", "completions": ["x", "y"]}])
    assert main(["select", bare, "--output", str(out)]) == 2 and "Add rewards with" in capsys.readouterr().err
    out.write_text("mine")
    assert main(["select", data, "--output", str(out)]) == 2 and out.read_text() == "mine"
    assert main(["select", data, "--output", str(out), "--overwrite"]) == 0 and out.read_text() != "mine"
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="data file itself"):
        SelectConfig(data=data, output=data, overwrite=True)
    with pytest.raises(DataError, match="have no rewards"):
        select(
            SelectConfig(
                data=write_rows(tmp_path / "p.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}]),
                output=str(tmp_path / "o.jsonl"),
            )
        )


def test_json_and_training_on_the_result(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    data = write_rows(tmp_path / "scored.jsonl", SCORED)
    objectives = {
        "best-vs-worst": "dpo",
        "best-of-n": "sft",
        "label-by-mean": "bnf",
        "dynamic-sampling": "rwr",
    }
    for selection, objective in objectives.items():
        out = tmp_path / f"{selection}.jsonl"
        assert main(["select", data, "--output", str(out), "--selection", selection, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["counts"]["groups_out"] == 8 and told["output"] == str(out)
        run = [
            "--data",
            str(out),
            "--model",
            str(model),
            "--output",
            str(tmp_path / selection),
            "--max_steps",
            "1",
            "--json",
        ]
        assert main(["train", *run, "--objective", objective]) == 0, capsys.readouterr().err
        capsys.readouterr()
