"""The demo from end to end on a tiny model, and what it may delete."""

import json

import pytest

from preftune.commands import demo as recipe
from preftune.commands.demo import DemoConfig, demo
from preftune.errors import ConfigError
from preftune.progress import Reporter
from preftune.rewards.judged import Judged
from preftune.sampling.sample import SampleOptions

QUIET = Reporter(quiet=True)


def config(tiny_folder, output, **changes) -> DemoConfig:
    sampling = SampleOptions(num_completions=4, max_new_tokens=24)
    return DemoConfig(
        model=str(tiny_folder), output=str(output), steps=2, num_held_out=4, sampling=sampling, **changes
    )


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_end_to_end(tiny_folder, tmp_path, monkeypatch, capsys):
    """A random model writes no sentences, so length takes the place of `short_answer`."""
    monkeypatch.setattr(recipe, "REWARD", "length.min")
    result = demo(config(tiny_folder, tmp_path / "demo"), Reporter(line_seconds=0.0))
    told = capsys.readouterr().err
    assert "1/3" in told and "train 1/2" in told and "train 2/2" in told and "after 4/4" in told
    run = tmp_path / "demo" / "run"
    drawn = json_lines(run / "completions.jsonl")
    assert len(drawn) >= 2 * 4 and all(len(row["completions"]) == 4 for row in drawn)
    samples = json_lines(run / "samples.jsonl")
    assert [sample["stage"] for sample in samples] == ["before"] * 8 + ["after"] * 8
    assert result.good.before.reward.mean == 0 and result.comparison.num_prompts == 4
    assert [pair[0].prompt for pair in result.first] == [pair[1].prompt for pair in result.first]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "Repetitive" in page and "Distinct-2" in page
    again = demo(config(tiny_folder, tmp_path / "demo", overwrite=True), QUIET)
    assert again.comparison == result.comparison  # the same seed, the same draws
    with pytest.raises(ConfigError, match="there already"):
        demo(config(tiny_folder, tmp_path / "demo"), QUIET)


def test_overwriting_spares_what_no_demo_wrote(tiny_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        demo(config(tiny_folder, tmp_path, overwrite=True), QUIET)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_one_completion_is_no_preference():
    with pytest.raises(ConfigError, match="num_completions is too small"):
        DemoConfig(sampling=SampleOptions(num_completions=1))


def test_good_answers_and_the_lines_of_a_terminal():
    def one(reward, text, ended):
        return Judged(
            prompt_index=0,
            sample_index=0,
            prompt="Why?",
            completion=text,
            reward=reward,
            ended=ended,
            num_tokens=9,
        )

    judged = [one(0.5, "a b a b a b a b a b a b", True), one(0.49, "c d", False)]
    assert [entry.reward for entry in recipe._good(judged)] == [1.0, 0.0]
    found = recipe._degeneration(judged)
    assert found.repetitive == 0.5 and found.distinct_2 == 3 / 12  # ab, ba, cd of 11 + 1 pairs
    assert recipe._shown((judged[1], judged[0])).splitlines() == [
        "Why?",
        "  before  c d [cut off]",
        "  after   a b a b a b a b a b a b",
    ]
