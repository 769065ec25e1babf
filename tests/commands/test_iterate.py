"""`preftune iterate`: rounds from file to file, that go on where they stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from preftune.commands.iterate import IterateConfig, iterate
from preftune.errors import ConfigError, TrainingError
from preftune.model.adapters import LoraOptions
from preftune.objectives.dpo import DPO
from preftune.objectives.sft import SFT
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions
from preftune.train.optim import OptimOptions
from tests.folders import same_bits, weights_of, write_rows

QUIET = Reporter(quiet=True)
TASTE = "def taste(prompts, completions, **columns):\n    {}return [float(sum(map(c.count, 'aeiou'))) for c in completions]\n"


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """Two rounds of four prompts each."""
    rows = [{"prompt": f"Say {word}."} for word in ("sea", "poem", "tea", "snow", "blue", "Paris", "sun")]
    (tmp_path / "taste.py").write_text(TASTE.format(""))
    return IterateConfig(
        prompts=write_rows(tmp_path / "prompts.jsonl", rows),
        reward=f"{tmp_path / 'taste.py'}:taste",
        output=str(tmp_path / "out"),
        model=str(tiny_folder),
        objective=DPO(),
        rounds=2,
        prompts_per_round=4,
        batch_size=2,
        json=True,
        sampling=SampleOptions(num_completions=4, max_new_tokens=6),
        optim=OptimOptions(learning_rate=3e-3),
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rounds_follow_one_another(settings):
    """The second one draws from the first one's policy, on the prompts after the first one's; the file's end
    joins its start.
    """
    found = iterate(settings, QUIET)
    first, second = (Path(settings.output) / f"round-0{n}" for n in (1, 2))
    assert found.final == str(second / "train" / "final") and len(found.rewards) == 2
    prompts = [[row["prompt"] for row in lines(one / "completions.jsonl")] for one in (first, second)]
    words = [("sea", "poem", "tea", "snow"), ("blue", "Paris", "sun", "sea")]
    assert prompts == [[f"Say {word}." for word in four] for four in words]
    config = (second / "train" / "config.yaml").read_text()
    assert f"model: {first / 'train' / 'final'}" in config
    for row in lines(first / "selected.jsonl"):
        assert row["chosen_reward"] > row["rejected_reward"]
    assert not same_bits(weights_of(first / "train" / "final"), weights_of(second / "train" / "final"))


def test_the_reference_is_the_last_policy_or_the_start(settings):
    last = iterate(settings, QUIET)
    start = iterate(replace(settings, reference="start", output=settings.output + "-start"), QUIET)
    runs = [Path(one.final).parent for one in (last, start)]
    assert [f"model: {settings.model}" in (run / "config.yaml").read_text() for run in runs] == [False, True]
    same = [
        same_bits(
            weights_of(runs[0].parents[1] / f"round-0{n}" / "train" / "final"),
            weights_of(runs[1].parents[1] / f"round-0{n}" / "train" / "final"),
        )
        for n in (1, 2)
    ]
    assert same == [True, False]


def test_it_goes_on_after_any_stage(settings, tmp_path):
    whole = iterate(replace(settings, output=str(tmp_path / "whole")), QUIET)
    (tmp_path / "taste.py").write_text(TASTE.format("assert 'sun' not in str(prompts), 'cloudy'\n    "))
    with pytest.raises(TrainingError, match="cloudy"):
        iterate(settings, QUIET)
    drawn = (Path(settings.output) / "round-02" / "completions.jsonl").stat().st_mtime_ns
    (tmp_path / "taste.py").write_text(TASTE.format(""))
    again = iterate(settings, QUIET)
    assert (Path(settings.output) / "round-02" / "completions.jsonl").stat().st_mtime_ns == drawn
    assert again.rewards == whole.rewards
    assert same_bits(weights_of(Path(again.final)), weights_of(Path(whole.final)))
    shutil.rmtree(again.final)  # as if it had been killed in training
    assert same_bits(weights_of(Path(iterate(settings, QUIET).final)), weights_of(Path(whole.final)))


def test_more_rounds_may_follow_but_not_others(settings):
    one = iterate(replace(settings, rounds=1), QUIET)
    two = iterate(settings, QUIET)
    assert two.rewards[:1] == one.rewards
    with pytest.raises(ConfigError, match="was begun with other settings; got seed 7; expected seed 0"):
        iterate(replace(settings, seed=7), QUIET)


def test_a_blank_completion_costs_its_row_and_not_the_round(settings, tmp_path, capsys):
    """A policy that ends at once writes nothing; the row is counted and left out."""
    (tmp_path / "taste.py").write_text(TASTE.format("raise RuntimeError('off')\n    "))
    with pytest.raises(TrainingError, match="off"):
        iterate(replace(settings, rounds=1), QUIET)
    (tmp_path / "taste.py").write_text(TASTE.format(""))
    path = Path(settings.output) / "round-01" / "completions.jsonl"
    rows = lines(path)
    rows[0]["completions"][0] = ""
    write_rows(path, rows)
    iterate(replace(settings, rounds=1), Reporter(quiet=False))
    assert "skipped 1 rows that cannot be used" in capsys.readouterr().err
    left = {row["prompt"] for row in lines(path.parent / "selected.jsonl")}
    assert left and rows[0]["prompt"] not in left


def test_adapters_and_imitation(settings):
    found = iterate(
        replace(settings, objective=SFT(), selection="best-of-n", lora=LoraOptions(rank=2)), QUIET
    )
    assert (Path(found.final) / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (dict(rounds=0), "rounds is out of range"),
        (dict(prompts_per_round=0), "prompts_per_round is out of range"),
        (dict(reward="lenght"), "Unknown reward"),
        (dict(selection="best"), "There is no such selection"),
        (dict(selection="best-of-n", min_gap=0.1), "min_gap"),
    ],
)
def test_mistakes_are_told_at_once(wrong, told, settings):
    with pytest.raises(ConfigError, match=told):
        replace(settings, **wrong)


def test_a_folder_of_something_else_is_left_alone(settings):
    Path(settings.output).mkdir()
    (Path(settings.output) / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        iterate(settings, QUIET)
