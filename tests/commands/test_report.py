"""Answers before and after, for a run that sampled none."""

import json
from pathlib import Path

from preftune.cli.main import main
from preftune.train.loop import train
from tests.folders import PAIRS, tiny_config, write_rows


def test_answers_of_an_offline_run(tiny_folder, tmp_path, capsys):
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    run = train(tiny_config(tiny_folder, data, tmp_path / "run", eval_fraction=0.5), quiet=True).folder
    assert not (run / "samples.jsonl").exists()
    words = ["report", str(run), "--answers", "3", "--max_new_tokens", "8"]
    assert main(words) == 0
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["prompt_index"]) for row in rows] == [
        (stage, index) for stage in ("before", "after") for index in range(3)
    ]
    assert all(0 < row["num_tokens"] <= 8 for row in rows)
    asked = {row["prompt"] for row in rows}
    assert asked < {row["prompt"] for row in PAIRS}
    trained = {json.loads(line)["prompt"] for line in (run / "tokens.jsonl").read_text().splitlines()}
    assert asked & trained, "both are of held-out prompts, without marks of the template"
    page = Path(run / "report.html").read_text(encoding="utf-8")
    assert "im_start" not in page.partition("<h2>Settings</h2>")[0]
    assert rows[-1]["prompt"] in page and "--answers 8" not in page
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_run_that_held_out_nothing(tiny_folder, pairs_file, tmp_path, capsys):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", eval_fraction=0.0)
    train(config, quiet=True)
    assert main(["report", str(tmp_path / "run"), "--answers", "3"]) == 2
    assert "held out nothing" in capsys.readouterr().err
