"""Source hybrid: pairs of the data with samples of their prompts that nobody judges, or beside samples with a
reward.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from preftune.errors import ConfigError, DataError
from preftune.model.adapters import LoraOptions
from preftune.model.policy import score_groups
from preftune.objectives.dpo import DPO
from preftune.objectives.hypo import HyPO
from preftune.objectives.mixture import Mixture
from preftune.objectives.sft import SFT
from preftune.objectives.xpo import XPO
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions
from preftune.train.dry_run import dry_run
from preftune.train.evaluate import evaluate
from preftune.train.loop import resume, train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.processes import ALONE
from preftune.train.setup import build_job
from tests.folders import PAIRS, metric_rows, same_bits, timeless, tiny_config, weights_of, write_rows


@pytest.fixture
def config(tiny_folder, tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", PAIRS)

    def made(name="run", **settings):
        sampling = SampleOptions(**{"num_completions": 2, "max_new_tokens": 6} | settings.pop("sampling", {}))
        collect = CollectOptions(**settings.pop("collect", {}))
        chosen = {"source": "hybrid", "objective": HyPO(kl_weight=0.1), "batch_size": 2} | settings
        return tiny_config(tiny_folder, pairs, tmp_path / name, sampling=sampling, collect=collect, **chosen)

    return made


@pytest.fixture
def vowels(tmp_path):
    path = tmp_path / "taste.py"
    path.write_text(
        "def vowels(prompts, completions, **columns):\n"
        "    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) + 1e-3 * k for k, text in enumerate(completions)]\n"
    )
    return f"{path}:vowels"


def moved(job) -> None:
    with torch.no_grad():
        for parameter in job.policy.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def trained(folder: Path) -> list[dict]:
    return [row for row in metric_rows(folder) if row["phase"] == "train"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_pair_comes_with_samples_of_the_policy_as_it_is(config, temperature):
    settings = {"sampling": {"temperature": temperature}, "lora": LoraOptions(rank=4)}
    job = build_job(config(**settings), Reporter(quiet=True))
    moved(job)
    groups = job.source.supply(1).groups
    fresh, _ = job.source.drawn(groups, job.source.judge, 0, lambda done, of: None)
    policy = score_groups(job.policy, fresh.groups, job.config.layout, temperature)
    for group, sampled, scored in zip(groups, fresh.groups, policy, strict=True):
        assert group.sources == (0, 0, 1, 1) and group.pairs == ((0, 1),)
        assert group.prompt.tobytes() == sampled.prompt.tobytes()
        assert [ids.tolist() for ids in group.completions[2:]] == [
            ids.tolist() for ids in sampled.completions
        ]
        for told, known in zip(sampled.behaviour_logp, scored, strict=True):
            np.testing.assert_allclose(told, known, atol=1e-4)
    assert len({group.origin for group in groups}) == 2


def test_the_loss_of_a_step_by_an_independent_sum(config):
    """Two prompts with two samples each: h (h - b) / 2, summed over both, is (h1 - h2)^2 / 2."""
    job = build_job(config(), Reporter(quiet=True))
    moved(job)
    groups = job.source.supply(1).groups
    policy, reference = score_groups(job.policy, groups, job.config.layout), job.anchors.reference(groups)
    ratios = [
        [
            float(np.sum(a, dtype=np.float64) - np.sum(b, dtype=np.float64))
            for a, b in zip(one, two, strict=True)
        ]
        for one, two in zip(policy, reference, strict=True)
    ]
    dpo = np.mean([np.log1p(np.exp(-0.1 * (h[0] - h[1]))) for h in ratios])
    divergence = np.mean([(h[2] - h[3]) ** 2 / 4 for h in ratios])
    found = evaluate(job.policy, groups, job.config.objective, job.anchors, job.config.layout)
    assert found["loss"] == pytest.approx(dpo + 0.1 * divergence, rel=1e-4)
    assert found["hypo/kl"] == pytest.approx(np.mean([h[2:] for h in ratios]), rel=1e-4)


def test_what_is_counted_and_watched(config):
    run = train(config(epochs=1.0), quiet=True)
    rows = trained(run.folder)
    assert len(rows) == 3 and rows[-1]["prompts_seen"] == 6
    assert (rows[-1]["samples_drawn"], rows[-1]["reward_queries"]) == (12, 0)
    held = [row for row in metric_rows(run.folder) if row["phase"] == "eval"]
    assert held[0]["eval_loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert held[0]["eval_kl"] == pytest.approx(0, abs=1e-5)
    assert {"eval_rewards/accuracies", "eval_entropy", "eval_completions/length"} <= held[-1].keys()
    assert "eval_reward" not in held[-1] and not any("no_reward" in name for name in held[-1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": Mixture(terms="hypo(kl_weight=0.1) + 0.5*sft")},
        {"objective": DPO(), "reward": "length.min"},
        {"objective": XPO(), "reward": "length.min", "collect": {"opponent": "reference"}},
        {"objective": DPO(), "reward": "length.min", "collect": {"opponent": "two-sided"}},
    ],
)
def test_a_resumed_run_ends_bit_for_bit(settings, config):
    settings = dict(save_every=1, keep_checkpoints=9, max_steps=4, eval_every=2) | settings
    whole = train(config("whole", **settings), quiet=True).folder
    for cut in (1, 3):
        again = config(f"cut-{cut}", **settings)
        folder = Path(again.output)
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("final", "report.html", "step-*"))
        shutil.copytree(whole / "checkpoints" / f"step-{cut:06d}", folder / "checkpoints" / f"step-{cut:06d}")
        (folder / "status.json").write_text('{"state": "running", "step": 0, "message": ""}')
        assert resume(again, quiet=True).state == "finished"
        assert same_bits(weights_of(folder / "final"), weights_of(whole / "final"))
        assert timeless(metric_rows(folder)) == timeless(metric_rows(whole))


def test_a_dry_run_has_a_forecast(config):
    found = dry_run(config(epochs=3.0), Reporter(quiet=True), ALONE)
    assert found.num_steps == 9 and found.peak_bytes > 0


def test_with_a_reward_half_of_the_groups_are_the_data_s(config, vowels):
    made = config(objective=DPO(), reward=vowels, batch_size=3)
    assert made.collect.data_share == 0.5
    job = build_job(made, Reporter(quiet=True))
    found = [group for step in (1, 2) for group in job.source.supply(step).groups]
    drawn = [group for group in found if group.behaviour_logp]
    assert len(found) == 6 and len(drawn) == 3
    assert all(group.pairs for group in found)


def test_data_pairs_of_xpo_are_the_data_s(config):
    settings = dict(objective=XPO(), reward="length.min", collect={"opponent": "reference"}, batch_size=4)
    job = build_job(config(**settings, sampling={"num_completions": 1}), Reporter(quiet=True))
    sources = {tuple(sorted(group.sources)) for step in (1, 2) for group in job.source.supply(step).groups}
    assert sources == {(0, 0), (1, 2)}


REFUSED = {
    "nobody judges": ({"reward": "length.min"}, "hypo uses no reward"),
    "no reward": ({"objective": DPO()}, "scored by a reward"),
    "no data": (
        {"objective": DPO(), "reward": "length.min", "collect": {"data_share": 0.0}},
        "--source on-policy",
    ),
    "a selection": ({"collect": {"selection": "all-pairs"}}, "collect.selection has no effect with hypo"),
    "an opponent": ({"collect": {"opponent": "mixture"}}, "collect.opponent has no effect with hypo"),
    "a share": ({"collect": {"data_share": 0.3}}, "collect.data_share has no effect with hypo"),
    "on-policy": ({"source": "on-policy", "reward": "length.min"}, "Set --source hybrid"),
    "offline": ({"source": "offline", "sampling": {"max_new_tokens": 7}}, "sampling has no effect offline"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, config):
    settings, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_prompts_without_room_for_samples_are_left_out(config, capsys):
    groups = build_job(config(), Reporter(quiet=True)).source.supply(1).groups
    longest = max(len(group.prompt) for group in groups)
    job = build_job(config(sampling={"max_new_tokens": 513 - longest}), Reporter(quiet=False))
    assert "left out: the prompt leaves no room for sampling.max_new_tokens" in capsys.readouterr().err
    assert all(len(group.prompt) < longest for group in job.source.supply(1).groups)
    with pytest.raises(DataError, match="No prompt leaves room"):
        build_job(config(sampling={"max_new_tokens": 511}), Reporter(quiet=True))


def test_held_out_pairs_of_a_file(config, tmp_path):
    held = write_rows(tmp_path / "held.jsonl", PAIRS[:1])
    run = train(config(eval_data=held, max_steps=1, eval_fraction=0.1, objective=HyPO()), quiet=True)
    last = metric_rows(run.folder)[-1]
    assert last["phase"] == "eval" and {"eval_loss", "eval_kl"} <= last.keys()


def test_an_imitating_objective_takes_the_data_s_preferred_completions(config):
    run = train(config(objective=SFT(), reward="length.min", max_steps=2), quiet=True)
    assert run.state == "finished"
