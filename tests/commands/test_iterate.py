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
from preftune.rewards import resolve_reward
from preftune.rewards.call import call_reward
from preftune.sampling.sample import SampleOptions
from preftune.train.optim import OptimOptions
from tests.folders import PAIRS, same_bits, save_tiny_model, weights_of, write_rows

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


def test_dice(settings, tiny_folder, tmp_path):
    """Rewards of the policy against what it was tuned from, less a price on length, with replayed pairs."""
    base = save_tiny_model(tmp_path / "base", seed=5)
    own = replace(
        settings,
        reward="implicit(policy=last, reference=before)",
        base=str(base),
        length_penalty="auto",
        mix=write_rows(tmp_path / "old.jsonl", PAIRS),
        mix_share=0.25,
    )
    iterate(own, QUIET)
    first, second = (Path(settings.output) / f"round-0{n}" for n in (1, 2))
    for folder, pair in ((first, (tiny_folder, base)), (second, (first / "train" / "final", tiny_folder))):
        rows = lines(folder / "scored.jsonl")
        reward = resolve_reward(f"implicit(policy='{pair[0]}', reference='{pair[1]}')")
        for row in rows:
            count = len(row["completions"])
            expected = call_reward(
                reward, "", [row["prompt"]] * count, row["completions"], {"ended": row["ended"]}
            )
            assert row["rewards"] == pytest.approx(expected, abs=1e-5)
        selected, joined = lines(folder / "selected.jsonl"), lines(folder / "joined.jsonl")
        replayed = [row for row in joined if row["prompt"] in {pair["prompt"] for pair in PAIRS}]
        assert len(joined) - len(selected) == len(replayed) == round(len(selected) / 3)
        assert f"data: {folder / 'joined.jsonl'}" in (folder / "train" / "config.yaml").read_text()


def test_prompts_evolve(settings):
    """Half of the second round's prompts are rewritten from prompts of the first whose rewards differ."""
    iterate(replace(settings, evolve=0.5, near_misses=True), QUIET)
    first, second = (Path(settings.output) / f"round-0{n}" for n in (1, 2))
    evolved, rows = lines(second / "evolved.jsonl"), lines(second / "completions.jsonl")
    before = {row["prompt"]: row for row in lines(first / "scored.jsonl")}
    assert len(rows) == 4 and 1 <= len(evolved) <= 2 and not (first / "evolved.jsonl").exists()
    assert [row["prompt"] for row in rows[: len(evolved)]] == [row["prompt"] for row in evolved]
    for row in evolved:
        parent = before[row["parent"]]
        best = parent["completions"][parent["rewards"].index(max(parent["rewards"]))]
        assert len(set(parent["rewards"])) > 1 and row["parent_text"] == best
    near = [
        row
        for row in lines(second / "joined.jsonl")
        if row["rejected"] in {e["parent_text"] for e in evolved}
    ]
    assert near and {row["prompt"] for row in near} <= {row["prompt"] for row in evolved}


def test_rounds_are_measured_on_held_out_prompts(settings, tmp_path, capsys):
    held = write_rows(tmp_path / "held.jsonl", [{"prompt": f"Held {k}."} for k in range(3)])
    measured = replace(settings, rounds=1, eval_prompts=held, eval_completions=2, pass_reward=1.0)
    found = iterate(measured, QUIET)
    for name, one in zip(("start", "01"), found.held_out, strict=True):
        rows = lines(Path(settings.output) / f"held-out-{name}.jsonl")
        passed = [sum(reward >= 1 for reward in row["rewards"]) / 2 for row in rows]
        assert one is not None and one.pass_1.mean == pytest.approx(sum(passed) / 3)
        assert one.pass_k.mean == pytest.approx(sum(share > 0 for share in passed) / 3)
    assert iterate(measured, QUIET).held_out == found.held_out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (dict(reward="implicit(policy=last, reference=first)"), "--base"),
        (dict(base="M"), "base has no effect"),
        (dict(mix_share=0.2), "mix_share has no effect"),
        (dict(near_misses=True), "near_misses has no effect"),
        (dict(evolve=0.5, reward="exact"), "none of the columns"),
        (dict(pass_reward=2.0), "pass_reward has no effect"),
        (dict(evolve=1.0), "evolve is out of range"),
        (
            dict(reward="implicit(policy=last, reference=first)", base="M", eval_prompts="h.jsonl"),
            "Rounds cannot be compared",
        ),
    ],
)
def test_settings_of_rounds_that_do_not_go_together(wrong, told, settings):
    with pytest.raises(ConfigError, match=told):
        replace(settings, **wrong)
