"""On-policy runs: the knobs B, M, T and C, what is counted, and that nothing drawn is lost."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.settings import parse_settings, settings_from_run
from preftune.errors import ConfigError, DataError, TrainingError
from preftune.model.policy import score_groups
from preftune.model.reference import ReferenceOptions
from preftune.objectives import OBJECTIVES
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.grpo import DAPO, GRPO, GSPO, DrGRPO
from preftune.objectives.nash_md import NashMD
from preftune.objectives.ppo import PPO
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.rloo import RLOO
from preftune.objectives.topr import TOPR
from preftune.progress import Reporter
from preftune.sampling.prefix import PrefixOptions
from preftune.sampling.sample import SampleOptions
from preftune.train.loop import resume, train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.onpolicy.credit import with_step_rewards
from preftune.train.onpolicy.source import OnPolicySource
from preftune.train.onpolicy.state import group_of, plain_group
from preftune.train.options import TrainConfig
from preftune.train.setup import build_job
from preftune.types import Group, Record
from tests.folders import metric_rows, same_bits, timeless, tiny_config, weights_of, write_rows

ROOT = Path(__file__).parents[2]
PROMPTS = [
    {"prompt": f"Say {word}.", "word": word}
    for word in ("sea", "poem", "tea", "snow", "blue", "Paris", "sun", "red")
]
REWARD = '''
def vowels(prompts, completions, **columns):
    """Share of a completion's characters that are vowels; a wrong but cheap taste."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]

def none_sometimes(prompts, completions, **columns):
    return [None if len(text) % 2 else float(len(text)) for text in completions]

def lines(prompts, completions, **columns):
    """A number for each line, and none for every fourth completion."""
    texts = [[line for line in text.split(chr(10)) if line] for text in completions]
    return [None if i % 4 == 3 else [len(x) / 10 for x in one] for i, one in enumerate(texts)]

def equal(prompts, completions, **columns):
    return [0.0 for _ in completions]
'''


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", PROMPTS)


@pytest.fixture(scope="module")
def rewards_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "taste.py"
    path.write_text(REWARD)
    return path


@pytest.fixture
def config(tiny_folder, prompts_file, rewards_file, tmp_path):
    def made(name="run", **settings) -> TrainConfig:
        sampling = SampleOptions(**{"num_completions": 4, "max_new_tokens": 6} | settings.pop("sampling", {}))
        collect = CollectOptions(**settings.pop("collect", {}))
        chosen = {
            "source": "on-policy",
            "reward": f"{rewards_file}:vowels",
            "objective": RLOO(),
            "batch_size": 2,
            "eval_fraction": 0.0,
            "epochs": 1.0,
        } | settings
        return tiny_config(
            tiny_folder, prompts_file, tmp_path / name, sampling=sampling, collect=collect, **chosen
        )

    return made


def trained(rows) -> list[dict]:
    return [row for row in rows if row["phase"] == "train"]


KNOBS = {  # (settings of collect, staleness of the first eight steps, samples drawn after them)
    "strict": ({}, [0, 0, 0, 0, 0, 0, 0, 0], 64),
    "B of two steps": ({"prompts": 4}, [0, 1, 0, 1, 0, 1, 0, 1], 64),
    "T of two": ({"epochs": 2}, [0, 1, 0, 1, 0, 1, 0, 1], 32),
    "B of two steps, T of two": ({"prompts": 4, "epochs": 2}, [0, 1, 2, 3, 0, 1, 2, 3], 32),
    "a sampler one collection behind": ({"lag": 1}, [0, 1, 1, 1, 1, 1, 1, 1], 72),
}


@pytest.mark.parametrize("name", KNOBS)
def test_what_the_knobs_come_to(name, config):
    """Lag of the last minibatch: T * B / M - 1 steps."""
    collect, staleness, samples = KNOBS[name]
    run = train(config(collect=collect, max_steps=8, epochs=9.0), quiet=True)
    rows = trained(metric_rows(run.folder))
    assert [row["staleness"] for row in rows] == staleness
    assert rows[-1]["samples_drawn"] == rows[-1]["reward_queries"] == samples
    assert rows[-1]["prompts_seen"] == samples // 4
    assert len((run.folder / "completions.jsonl").read_text().splitlines()) == samples // 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ratios_start_at_one_with_rows_without_a_token(temperature, config, tiny_folder, tmp_path):
    """Three of four rows of the embedding stand for no text, and hold most of the probability."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.resize_token_embeddings(4 * model.config.vocab_size, mean_resizing=False)
    model.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "wide")
    settings = dict(objective=GRPO(), max_steps=1, sampling={"temperature": temperature})
    run = train(replace(config(**settings), model=str(tmp_path / "wide")), quiet=True)
    (row,) = trained(metric_rows(run.folder))
    assert row["ratio/mean"] == pytest.approx(1, abs=1e-5) and row["ratio/clipped"] == 0
    assert row["kl"] == pytest.approx(0, abs=1e-5)


def test_an_epoch_goes_over_all_prompts_once(config):
    run = train(config(), quiet=True)
    drawn = [json.loads(line) for line in (run.folder / "completions.jsonl").read_text().splitlines()]
    assert run.step == 4
    assert sorted(row["prompt"] for row in drawn) == sorted(row["prompt"] for row in PROMPTS)
    assert {row["step"] for row in drawn} == {1, 2, 3, 4}
    for row in drawn:
        assert (
            len(row["completions"]) == len(row["rewards"]) == len(row["ended"]) == len(row["num_tokens"]) == 4
        )


def test_a_replayed_collection_is_gone_over_beside_the_newest(config):
    job = build_job(config(collect={"replay": 1, "prompts": 2}), Reporter(quiet=True))
    seen = [{group.origin for group in job.source.supply(step).groups} for step in range(1, 6)]
    assert len(seen[0]) == 2
    assert seen[0] <= seen[1] | seen[2] and len(seen[1] | seen[2]) == 4  # the first and the second collection
    assert not (seen[3] | seen[4]) & seen[0]


def test_samples_are_of_the_policy_and_its_numbers_are_theirs(config):
    """behaviour_logp is what the trainer finds, before the policy has moved."""
    job = build_job(config(objective=GRPO()), Reporter(quiet=True))
    taken = job.source.supply(1)
    found = score_groups(job.policy, taken.groups, job.config.layout)
    for group, logps in zip(taken.groups, found, strict=True):
        for one, mine in zip(group.behaviour_logp, logps, strict=True):
            np.testing.assert_allclose(one, mine, atol=1e-4)
    assert taken.metrics["sampler_gap"] < 1e-4
    assert 0 < taken.metrics["sample_mfu"] < 1


def test_completions_go_on_from_a_beginning(config):
    """Rewards see it as a part of them; groups have it as context, and behaviour_logp is of the rest."""
    job = build_job(config(objective=GRPO(), prefix=PrefixOptions(column="word")), Reporter(quiet=True))
    plain = build_job(config(objective=GRPO()), Reporter(quiet=True))
    taken = job.source.supply(1)
    texts = {row["prompt"]: row["completions"] for row in taken.completions}
    decode = job.source.judge.renderer.decode
    lengths = {group.origin: len(group.prompt) for group in plain.source.supply(1).groups}
    found = score_groups(job.policy, taken.groups, job.config.layout)
    for group, logps in zip(taken.groups, found, strict=True):
        word = job.source.records[group.origin].columns["word"]
        assert decode(group.prompt).endswith(word) and len(group.prompt) > lengths[group.origin]
        assert all(text.startswith(word) for text in texts[f"Say {word}."])
        for told, mine in zip(group.behaviour_logp, logps, strict=True):
            np.testing.assert_allclose(told, mine, atol=1e-4)
        assert group.rewards != (0.0,) * 4
    with pytest.raises(DataError, match="the column answer holds no answer to continue"):
        build_job(config(prefix=PrefixOptions(column="answer")), Reporter(quiet=True))
    with pytest.raises(ConfigError, match="Only scored samples of the policy continue a beginning"):
        config(objective=NashMD(), prefix=PrefixOptions(column="word"), collect={"opponent": "mixture"})


def test_rewards_of_steps_stand_at_the_tokens_that_end_them(config, rewards_file):
    settings = dict(reward=f"{rewards_file}:lines", sampling={"max_new_tokens": 12})
    job = build_job(config(objective=REINFORCE(baseline="none"), **settings), Reporter(quiet=True))
    taken = job.source.supply(1)
    texts = {row["prompt"]: row for row in taken.completions}
    decode = job.source.judge.renderer.decode
    for group in taken.groups:
        row = texts[f"Say {job.source.records[group.origin].columns['word']}."]
        known = [k for k, reward in enumerate(row["rewards"]) if reward is not None]
        assert len(known) == 3 == len(group.completions)
        for k, ids, places, reward in zip(
            known, group.completions, group.step_rewards, group.rewards, strict=True
        ):
            found = places[~np.isnan(places)]
            assert found.tolist() == pytest.approx(row["reward_steps"][k])
            assert reward == pytest.approx(sum(row["reward_steps"][k]))
            for place in np.flatnonzero(~np.isnan(places))[:-1]:
                assert "\n" in decode(ids[: place + 1].tolist())[-2:]
    with pytest.raises(
        TrainingError, match="dpo has one number for a completion and no use for rewards of its steps"
    ):
        train(config("refused", objective=DPO(), **settings), quiet=True)
    with pytest.raises(TrainingError, match=r"reinforce gives tokens the reward of their own step"):
        train(config("none", objective=REINFORCE(credit="step")), quiet=True)


def test_progress_of_a_prover_in_a_run(config, rewards_file, tiny_folder):
    prover = f"progress(model='{tiny_folder}', reward='{rewards_file}:vowels', num=2, max_new_tokens=3)"
    reward = f"1*{rewards_file}:vowels + 3*{prover}"
    job = build_job(
        config(objective=REINFORCE(credit="step"), reward=reward, batch_size=1), Reporter(quiet=True)
    )
    [row] = job.source.supply(1).completions
    assert [one is None for one in row["reward_steps"]] == [
        one is None for one in row["reward_parts"]["progress"]
    ]
    for k, steps in enumerate(row["reward_steps"]):
        assert sum(steps or ()) == pytest.approx(3 * (row["reward_parts"]["progress"][k] or 0), abs=1e-6)
    with pytest.raises(ConfigError, match="dpo has one number for a completion"):
        build_job(config("refused", objective=DPO(), reward=reward), Reporter(quiet=True))
    with pytest.raises(ConfigError, match=r"reward of their own step \(credit step\); got reward 'ended'"):
        build_job(config("none", objective=REINFORCE(credit="step"), reward="ended"), Reporter(quiet=True))


def test_a_step_within_a_beginning_is_not_the_policys(config):
    """Lines of 1, 2 and 4: the first was given, the second ends with token 2, the last takes in the rest."""
    job = build_job(config(), Reporter(quiet=True))
    renderer = job.source.judge.renderer
    text = "one\ntwo\nthree"
    ids = renderer.render(Record(prompt="x", completions=("two\nthree",))).completions[0]
    group = Group(prompt=ids, completions=(ids,), rewards=(8.0,))
    found = with_step_rewards(group, [text], [(1.0, 2.0, 4.0)], renderer)
    places = found.step_rewards[0]
    at = np.flatnonzero(~np.isnan(places)).tolist()
    assert found.rewards == (7.0,) and places[at].tolist() == [2.0, 4.0] and at[1] == len(ids) - 1
    assert renderer.decode(ids[: at[0] + 1].tolist()) == "two\n"
    masked = replace(group, scored=(np.arange(len(ids)) > 0,))
    with pytest.raises(TrainingError, match="Rewards of steps are of answers"):
        with_step_rewards(masked, [text], [(1.0, 2.0, 4.0)], renderer)


def test_a_sampler_that_disagrees_stops_the_run(config):
    with pytest.raises(
        TrainingError, match=r"trainer and the sampler disagree .* expected at most 1e-12 on average"
    ):
        train(config(collect={"sampler_gap": 1e-12}), quiet=True)


def test_values_at_sampling_reach_ppo(config):
    job = build_job(config(objective=PPO(value_clip=0.2)), Reporter(quiet=True))
    group = job.source.supply(1).groups[0]
    assert [len(one) for one in group.behaviour_value] == [len(ids) for ids in group.completions]
    run = train(
        config(objective=PPO(value_clip=0.2), max_steps=4, epochs=9.0, collect={"epochs": 2}), quiet=True
    )
    assert run.step == 4


def test_completions_without_a_reward_are_left_out_and_counted(config, rewards_file):
    run = train(config(reward=f"{rewards_file}:none_sometimes", max_steps=2), quiet=True)
    drawn = [json.loads(line) for line in (run.folder / "completions.jsonl").read_text().splitlines()]
    without = [sum(one is None for one in row["rewards"]) for row in drawn]
    assert sum(without) > 0
    assert [row["collect/no_reward"] for row in trained(metric_rows(run.folder))] == [
        sum(without[:2]),
        sum(without[2:]),
    ]


def test_rewards_that_tell_nothing_apart_stop_a_contrast(config, rewards_file):
    with pytest.raises(
        TrainingError,
        match="The completions teach nothing; got after 10 draws 20 prompts: all rewards are equal",
    ):
        train(config(reward=f"{rewards_file}:equal", objective=DPO()), quiet=True)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_policy_that_has_learned_all_there_is_ends_its_run(lag, config, tmp_path):
    """After two collections all rewards are equal: these are used, and the run is finished, with its model,
    and not failed.
    """
    path = tmp_path / "sated.py"
    calls = str(tmp_path / "calls")
    path.write_text(
        f"import pathlib\np = pathlib.Path({calls!r})\n"
        "def taste(prompts, completions, **columns):\n"
        "    n = len(p.read_text()) if p.exists() else 0\n    p.write_text('x' * (n + 1))\n"
        "    return [float(c.count('e') + len(c) % 3) if n < 2 else 1.0 for c in completions]\n"
    )
    run = train(
        config(reward=f"{path}:taste", objective=DPO(), max_steps=6, epochs=9.0, collect={"lag": lag}),
        quiet=True,
    )
    assert (run.state, run.step) == ("finished", 2)
    assert run.final is not None and (run.final / "config.json").exists()


def test_fill_replaces_prompts_that_teach_nothing(config, tmp_path):
    """Half of the prompts get equal rewards; a filled collection holds the others alone, as many as were
    asked for.
    """
    path = tmp_path / "half.py"
    path.write_text(
        "def half(prompts, completions, **columns):\n"
        "    return [float(len(c)) * (len(w) == 3) for c, w in zip(completions, columns['word'])]\n"
    )
    settings = dict(reward=f"{path}:half", objective=GRPO(), batch_size=3)
    job = build_job(
        config(collect={"selection": "dynamic-sampling", "fill": True}, **settings), Reporter(quiet=True)
    )
    groups = job.source.supply(1).groups
    assert len(groups) == 3
    assert all(len(set(group.rewards)) > 1 for group in groups)
    job = build_job(config(collect={"selection": "dynamic-sampling"}, **settings), Reporter(quiet=True))
    taken = job.source.supply(1)
    assert taken.metrics["collect/left_out"] == 3 - len(taken.groups) > 0


def test_a_share_of_the_groups_comes_from_the_data(config, pairs_file):
    settings = dict(data=pairs_file, objective=DPO(), collect={"data_share": 0.5}, batch_size=4)
    job = build_job(
        replace(config(**{k: v for k, v in settings.items() if k != "data"}), data=pairs_file),
        Reporter(quiet=True),
    )
    taken = job.source.supply(1)
    later = job.source.supply(2)
    from_data = [not group.behaviour_logp for group in [*taken.groups, *later.groups]]
    assert sum(from_data) == len(from_data) // 2 == 4
    assert all(group.pairs for group in [*taken.groups, *later.groups])


VARIANTS = {
    "bnf": dict(objective=BNF(), collect={"prompts": 4, "epochs": 2}),
    "replay": dict(objective=DPO(), collect={"prompts": 4, "replay": 1}),
    "lag": dict(objective=GRPO(), collect={"lag": 1, "epochs": 2}),
    "critic": dict(objective=PPO(value_clip=0.2), collect={"epochs": 2}),
    "moving reference": dict(objective=DPO(), reference=ReferenceOptions(update_every=2)),
    "steps": dict(objective=PPO(), reward="lines", collect={"epochs": 2}),
    "beginnings": dict(objective=GRPO(), prefix=PrefixOptions(column="word"), collect={"prompts": 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_bit_for_bit(variant, config, rewards_file):
    """From every checkpoint, in the middle of a collection too."""
    settings = (
        dict(save_every=1, keep_checkpoints=9, max_steps=6, epochs=9.0, eval_fraction=0.25, eval_every=3)
        | VARIANTS[variant]
    )
    if "reward" in settings:
        settings["reward"] = f"{rewards_file}:{settings['reward']}"
    whole = train(config("whole", **settings), quiet=True).folder
    for cut in (1, 2, 5):
        again = config(f"cut-{cut}", **settings)
        folder = Path(again.output)
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("final", "report.html", "step-*"))
        shutil.copytree(whole / "checkpoints" / f"step-{cut:06d}", folder / "checkpoints" / f"step-{cut:06d}")
        (folder / "status.json").write_text('{"state": "running", "step": 0, "message": ""}')
        result = resume(again, quiet=True)
        assert (result.state, result.step) == ("finished", 6)
        assert same_bits(weights_of(folder / "final"), weights_of(whole / "final"))
        assert timeless(metric_rows(folder)) == timeless(metric_rows(whole))
        assert (folder / "completions.jsonl").read_text() == (whole / "completions.jsonl").read_text()


def test_a_reward_that_fails_loses_no_completion(config, tmp_path):
    """The third call raises; after it is mended, the run goes on with the completions that were drawn, as if
    nothing had been.
    """
    path = tmp_path / "flaky.py"
    body = "def taste(prompts, completions, **columns):\n{}    return [float(c.count('e')) for c in completions]\n"
    calls = str(tmp_path / "calls")
    fails = f"    import pathlib\n    p = pathlib.Path({calls!r})\n    n = len(p.read_text()) if p.exists() else 0\n"
    fails += "    p.write_text('x' * (n + 1))\n    assert n < 2, 'no more'\n"
    path.write_text(body.format(fails))
    settings = dict(reward=f"{path}:taste", max_steps=4, epochs=9.0)
    with pytest.raises(
        TrainingError,
        match=r"Step 3 stopped: Reward .*flaky.py:taste' raised .*no more.* are in .*step-000002",
    ):
        train(config("cut", **settings), quiet=True)
    path.write_text(body.format(""))
    whole = train(config("whole", **settings), quiet=True)
    settings_of_cut = settings_from_run(TrainConfig, whole.folder.parent / "cut")
    with pytest.raises(ConfigError, match="--allow-changed reward"):
        resume(settings_of_cut, quiet=True)
    cut = resume(settings_of_cut, quiet=True, allowed=frozenset({"reward"}))
    assert same_bits(weights_of(cut.final), weights_of(whole.final))
    assert (
        trained(metric_rows(cut.folder))[-1]["samples_drawn"]
        == trained(metric_rows(whole.folder))[-1]["samples_drawn"]
        == 32
    )


def test_a_reward_that_fails_at_the_first_step_loses_no_completion(config, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def taste(prompts, completions, **columns):\n    raise RuntimeError('off')\n")
    settings = dict(reward=f"{path}:taste", max_steps=2)
    with pytest.raises(TrainingError, match=r"Step 1 stopped: .*off.* are in .*step-000000"):
        train(config("cut", **settings), quiet=True)
    path.write_text(
        "def taste(prompts, completions, **columns):\n    return [float(c.count('e')) for c in completions]\n"
    )
    folder = config("cut", **settings).output
    result = resume(config("cut", **settings), quiet=True, allowed=frozenset({"reward"}))
    assert str(result.folder) == folder and result.step == 2


def test_a_group_as_json_is_the_same_group():
    random = np.random.default_rng(0)
    group = Group(
        prompt=np.array([3, 1], dtype=np.int32),
        completions=(np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)),
        scored=(np.array([True, False]), np.array([True])),
        pairs=((0, 1),),
        probabilities=(0.7,),
        labels=(1, None),
        rewards=(0.1, None),
        sources=(1, 1),
        behaviour_logp=(random.normal(size=1).astype(np.float32),) * 2,
        behaviour_value=(random.normal(size=1).astype(np.float32),) * 2,
        origin="f:1",
    )
    again = group_of(json.loads(json.dumps(plain_group(group))))
    assert plain_group(again) == plain_group(group)
    assert again.behaviour_logp[0].dtype == np.float32 and again.completions[0].dtype == np.int32
    assert again.pairs == ((0, 1),) and np.array_equal(again.behaviour_logp[0], group.behaviour_logp[0])


LEARNERS = ("bnf", "dpo", "rloo", "ppo", "best-of-n", "sft")


@pytest.mark.parametrize("name", LEARNERS)
def test_the_reward_rises(name, config):
    """Thirty strictly on-policy steps of a tiny model, on its own samples."""
    settings = dict(
        objective=OBJECTIVES[name](), max_steps=30, epochs=99.0, batch_size=4, sampling={"num_completions": 8}
    )
    if name == "sft":
        settings["collect"] = {"selection": "best-of-n"}
    rows = trained(metric_rows(train(config(**settings, optim={"learning_rate": 3e-3}), quiet=True).folder))
    early, late = (np.mean([row["collect/reward"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert late > early + 0.02, (early, late)


REFUSED = {
    "no reward": (dict(reward=None), "On-policy samples are scored by a reward"),
    "cached reference": (
        dict(reference=ReferenceOptions(mode="cache")),
        "A cached reference knows no completions",
    ),
    "truncated ratios": (
        dict(objective=GRPO(), sampling={"top_k": 5}),
        "importance ratios, which truncated sampling makes wrong",
    ),
    "ratios of data": (
        dict(objective=GRPO(), collect={"data_share": 0.5}),
        "grpo needs to know how probable a completion was",
    ),
    "one completion": (
        dict(objective=DPO(), sampling={"num_completions": 1}),
        "dpo compares the completions of a prompt with each other; got sampling.num_completions 1",
    ),
    "one completion of a group": (
        dict(objective=GRPO(), sampling={"num_completions": 1}),
        "grpo compares the completions of a prompt with each other; got sampling.num_completions 1",
    ),
    "wrong selection": (
        dict(collect={"selection": "best-vs-worst"}),
        "The selection best-vs-worst makes pairs",
    ),
    "no such selection": (dict(collect={"selection": "best"}), "There is no such selection; got best"),
    "other models": (
        dict(objective=OBJECTIVES["hypo"]()),
        "hypo needs pairs of the data in addition to the policy's samples.*source hybrid",
    ),
    "settings alone": (
        dict(collect={"selection_settings": {"min_gap": 1}}),
        "collect.selection_settings belong to a selection",
    ),
    "no epochs": (dict(collect={"epochs": 0}), "collect.epochs is out of range"),
    "all data": (dict(collect={"data_share": 1.0}), "collect.data_share is out of range"),
    "no time": (dict(collect={"reward_timeout_s": 0.0}), "collect.reward_timeout_s is out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_apply_is_refused(name, config):
    settings, told = REFUSED[name]
    with pytest.raises(ConfigError, match=told):
        config(**settings)


@pytest.mark.parametrize(
    "setting",
    [
        {"reward": "brief"},
        {"sampling": SampleOptions(num_completions=2)},
        {"collect": CollectOptions(epochs=2)},
    ],
)
def test_offline_has_no_use_for_them(setting, tiny_folder, pairs_file, tmp_path):
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} has no effect offline"):
        tiny_config(tiny_folder, pairs_file, tmp_path / "run", **setting)


def test_held_out_prompts_are_sampled_and_judged(config):
    run = train(
        config(objective=BNF(), eval_fraction=0.25, eval_every=2, sampling={"max_new_tokens": 5}), quiet=True
    )
    rows = [row for row in metric_rows(run.folder) if row["phase"] == "eval"]
    assert rows[0]["step"] == 0 and rows[0]["eval_kl"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["eval_kl"] != rows[0]["eval_kl"]
    assert all(0 < row["eval_entropy"] < 7 and 0 <= row["eval_reward"] <= 1 for row in rows)
    assert all(1 <= row["eval_completions/length"] <= 5 for row in rows)


def test_held_out_prompts_from_a_file(config, tmp_path):
    held = write_rows(tmp_path / "held.jsonl", [{"prompt": "Say yes.", "word": "yes"}])
    run = train(config(eval_data=held, eval_fraction=0.1, max_steps=1), quiet=True)
    rows = [row for row in metric_rows(run.folder) if row["phase"] == "eval"]
    assert len(rows) == 2 and all("eval_reward" in row and "eval_kl" in row for row in rows)
    job = build_job(config(eval_data=held, eval_fraction=0.1), Reporter(quiet=True))
    assert [group.origin for group in job.eval_groups] == [f"{held}:1"]
    assert len(job.source._order.groups) == len(PROMPTS)


def test_what_draws_one_completion_and_learns_from_it_is_let_through(config):
    one = {"num_completions": 1}
    for objective in (REINFORCE(baseline="none"), PPO(), TOPR()):
        config(objective=objective, sampling=one)
    for objective in (REINFORCE(), RLOO(), DrGRPO(), DAPO(), GSPO()):
        with pytest.raises(ConfigError, match="compares the completions of a prompt with each other"):
            config(objective=objective, sampling=one)


def test_the_source_is_the_runs(config):
    job = build_job(config(), Reporter(quiet=True))
    assert isinstance(job.source, OnPolicySource) and job.samples is job.source


RECIPES = re.findall(
    r"^\| .* \| `(--[^`]*)`", (ROOT / "docs" / "on_policy.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


@pytest.mark.parametrize("flags", RECIPES)
def test_the_recipes_of_the_docs_are_settings(flags):
    words = ["--data", "prompts.jsonl", "--output", "run", *flags.split()]
    hybrid = "--source hybrid" in flags
    words += [] if hybrid else ["--source", "on-policy"]
    words += [] if "hypo" in flags else ["--reward", "brief"]  # hypo's samples have no reward
    config = parse_settings(TrainConfig, words, prog="preftune train", description="")
    assert config.source == ("hybrid" if hybrid else "on-policy") and len(RECIPES) >= 10


def test_terms_of_a_reward_are_logged_by_themselves(config, tmp_path):
    path = tmp_path / "late.py"
    path.write_text(
        "def score(prompts, completions, *, training_step, **columns):\n"
        "    return [None if k % 2 else float(training_step) for k in range(len(prompts))]\n"
    )
    reward = f"0.5*length.min + {path}:score"
    run = train(config(reward=reward, max_steps=2, eval_fraction=0.25), quiet=True)
    first, second = trained(metric_rows(run.folder))
    assert [row["collect/reward/score"] for row in (first, second)] == [0.0, 1.0]
    assert second["collect/reward_none/score"] == 0.5 and second["collect/reward_std/score"] == 0.0
    assert second["collect/reward_none/length.min"] == 0.0
    assert second["collect/reward"] == pytest.approx(0.5 * second["collect/reward/length.min"] + 0.5)
    held = [row for row in metric_rows(run.folder) if row["phase"] == "eval"]
    assert held[-1]["eval_reward/score"] == 2.0
    row = json.loads((run.folder / "completions.jsonl").read_text().splitlines()[-1])
    assert row["reward_parts"]["score"] == [1.0, None, 1.0, None]
    assert row["reward_parts"]["length.min"] == [-float(n) for n in row["num_tokens"]]
