"""Which columns of a file of prompts new completions keep, where the file judges completions of its own."""

import json
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.data.carried import load_prompts_to_answer
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.progress import Reporter

JUDGING = {
    "chosen": "red",
    "rewards": [1.0, 2.0],
    "ranks": [2, 1],
    "winner": "a",
    "labels": [True, False],
    "pairs": [[1, 0]],
    "sources": ["data", "reference"],
}
OTHER = {"tests": "assert color()", "answer": "red", "difficulty": 3, "tags": ["a", "b"]}


def sampled(tmp_path: Path, column: str, value: object) -> tuple[dict[str, object], Path]:
    """(the columns that are kept, a file of new completions with these columns)."""
    prompts, samples = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text(json.dumps({"prompt": "Name a color", column: value}) + "\n")
    [record] = load_prompts_to_answer(str(prompts), DataOptions(), 2, Reporter())
    row = {**record.columns, "prompt": record.prompt, "completions": ["teal", "plum"]}
    samples.write_text(json.dumps(row | {"ended": [True, True]}) + "\n")
    return dict(record.columns), samples


@pytest.mark.parametrize("column", JUDGING)
def test_judgments_of_old_completions_do_not_judge_new_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    carried, samples = sampled(tmp_path, column, JUDGING[column])
    assert column not in carried
    assert f"left out: {column};" in capsys.readouterr().err
    [record] = load_records(samples, DataOptions(), passed=True).records
    assert not (record.pairs or record.labels or record.rewards or record.sources)


@pytest.mark.parametrize("column", OTHER)
def test_columns_that_rewards_need_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    carried, _ = sampled(tmp_path, column, OTHER[column])
    assert carried == {column: OTHER[column]}
    assert "left out" not in capsys.readouterr().err


def test_one_row_that_judges_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"Name color {k}", "sources": ["x"] if k < 3 else ["data", "policy"]} for k in range(5)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = load_prompts_to_answer(str(prompts), DataOptions(), 2, Reporter())
    assert [dict(record.columns) for record in records] == [{}] * 5
    assert "left out: sources;" in capsys.readouterr().err


def test_the_command_sample_leaves_judgments_out(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, samples = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text(json.dumps({"prompt": "Name a color", "winner": "a", "answer": "red"}) + "\n")
    words = ["sample", str(tiny_folder), "--prompts", str(prompts), "--num_completions", "2"]
    assert main([*words, "--max_new_tokens", "3", "--output", str(samples)]) == 0
    assert "left out: winner;" in capsys.readouterr().err
    row = json.loads(samples.read_text().splitlines()[0])
    assert "winner" not in row and row["answer"] == "red"
