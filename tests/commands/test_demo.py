"""The demo from end to end on a tiny model, and what it may delete."""

import json

import pytest

from preftune.commands import demo as recipe
from preftune.commands.demo import DemoConfig, best_and_worst, demo
from preftune.errors import ConfigError, DataError
from preftune.progress import Reporter
from preftune.rewards.judged import Judged
from preftune.sampling.sample import SampleOptions

QUIET = Reporter(quiet=True)


def config(tiny_folder, output, **changes) -> DemoConfig:
    drawn = SampleOptions(num_completions=4, max_new_tokens=64)
    return DemoConfig(
        model=str(tiny_folder), output=str(output), num_prompts=12, num_held_out=4, sampling=drawn, **changes
    )


def test_end_to_end(tiny_folder, tmp_path, monkeypatch):
    """A random model writes no sentences, so its completions are judged by their length instead of `brief`."""
    monkeypatch.setattr(recipe, "REWARD", "length.min")
    result = demo(config(tiny_folder, tmp_path / "demo"), QUIET)
    rows = [
        json.loads(line)
        for line in (tmp_path / "demo" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert rows and all(
        len(set(row["rewards"])) > 1 and len(row["ended"]) == len(row["completions"]) for row in rows
    )
    run = tmp_path / "demo" / "run"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sample["stage"] for sample in samples] == ["before"] * 16 + ["after"] * 16
    assert result.comparison.num_prompts == 4
    assert (run / "final" / "config.json").is_file()
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")
    again = demo(config(tiny_folder, tmp_path / "demo", overwrite=True), QUIET)
    assert again.comparison == result.comparison  # the same seed, the same draws
    with pytest.raises(ConfigError, match="there already"):
        demo(config(tiny_folder, tmp_path / "demo"), QUIET)


def test_without_a_preference_there_is_nothing_to_learn(tiny_folder, tmp_path):
    with pytest.raises(DataError, match="No prompt got completions of different rewards"):
        demo(config(tiny_folder, tmp_path / "demo"), QUIET)
    assert not (tmp_path / "demo").exists()


def test_overwriting_spares_what_no_demo_wrote(tiny_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        demo(config(tiny_folder, tmp_path, overwrite=True), QUIET)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_rows_of_prompts_that_were_told_apart():
    def one(prompt, number, reward, text="c"):
        return Judged(
            prompt_index=prompt,
            sample_index=number,
            prompt=f"p{prompt}",
            completion=text,
            reward=reward,
            ended=reward > 0,
            num_tokens=1,
        )

    judged = [
        one(0, 0, 0.0),
        one(0, 1, 0.0),
        one(1, 0, 0.0, "bad"),
        one(1, 1, 0.7, "good"),
        one(1, 2, 0.0, " "),
    ]
    assert best_and_worst(judged) == [
        {"prompt": "p1", "completions": ["bad", "good"], "rewards": [0.0, 0.7], "ended": [False, True]}
    ]
