"""Opponents on-policy: what they draw from, what becomes of their completions, and the two objectives that
want them.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from preftune.data.fit import take_completions
from preftune.data.render import make_renderer
from preftune.errors import ConfigError
from preftune.model.adapters import LoraOptions
from preftune.model.load import LoadOptions, load_model, load_tokenizer, resolve_model
from preftune.model.policy import score_groups
from preftune.objectives.dpo import DPO
from preftune.objectives.hypo import HyPO
from preftune.objectives.inpo import INPO
from preftune.objectives.nash_md import NashMD
from preftune.objectives.rloo import RLOO
from preftune.objectives.xpo import XPO
from preftune.progress import Reporter
from preftune.sampling.sample import Blend, SampleOptions, sample
from preftune.selection.choices import NO_PAIR
from preftune.selection.rules import make_selection
from preftune.train.loop import train
from preftune.train.onpolicy.collect import (
    CollectOptions,
    Draw,
    select_sides,
    win_rates_against_opponents,
    with_opponents,
)
from preftune.train.setup import build_job
from preftune.types import Group
from tests.folders import metric_rows, save_tiny_model, tiny_config, write_rows

PROMPTS = [{"prompt": f"Say {word}."} for word in ("sea", "poem", "tea", "snow", "blue", "Paris")]
REWARD = """
def vowels(prompts, completions, **columns):
    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture(scope="module")
def two_models(tiny_folder, tmp_path_factory):
    other = save_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=7, std=0.3)
    renderer = make_renderer(load_tokenizer(resolve_model(str(tiny_folder)), LoadOptions()))
    return [
        load_model(resolve_model(str(folder)), LoadOptions()) for folder in (tiny_folder, other)
    ], renderer


@pytest.fixture
def config(tiny_folder, tmp_path):
    rewards = tmp_path / "taste.py"
    rewards.write_text(REWARD)
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)

    def made(objective, opponent, **settings):
        sampling = SampleOptions(**{"num_completions": 3, "max_new_tokens": 6} | settings.pop("sampling", {}))
        chosen = {
            "source": "on-policy",
            "reward": f"{rewards}:vowels",
            "objective": objective,
            "batch_size": 3,
            "sampling": sampling,
            "eval_fraction": 0.0,
            "max_steps": 3,
            "epochs": 9.0,
            "collect": CollectOptions(opponent=opponent),
        } | settings
        return tiny_config(tiny_folder, prompts, tmp_path / "run", **chosen)

    return made


@torch.no_grad()
def plain_logits(model, ids) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_blend_is_the_geometric_mixture(two_models, temperature):
    (one, two), renderer = two_models
    prompts = [np.array([5, 9, 17, 30], dtype=np.int32), np.array([8, 6], dtype=np.int32)]
    options = SampleOptions(num_completions=3, max_new_tokens=5, temperature=temperature)
    drawn = sample(one, renderer, prompts, options, 3, blend=Blend(model=two, share=0.3))
    for prompt, completions in zip(prompts, drawn, strict=True):
        for found in completions:
            ids = [*prompt.tolist(), *found.token_ids.tolist()]
            mixed = 0.7 * plain_logits(one, ids) + 0.3 * plain_logits(two, ids)
            places = range(len(prompt) - 1, len(ids) - 1)
            for logps, heat in ((found.logp, 1.0), (found.behaviour_logp, temperature)):
                expected = [float((mixed[t] / heat).log_softmax(-1)[ids[t + 1]]) for t in places]
                np.testing.assert_allclose(logps, expected, atol=1e-4)


def test_a_share_of_one_is_the_other_model_alone(two_models):
    (one, two), renderer = two_models
    prompts, options = (
        [np.array([5, 9, 17], dtype=np.int32)],
        SampleOptions(num_completions=4, max_new_tokens=5),
    )
    blended = sample(one, renderer, prompts, options, 3, blend=Blend(model=two, share=1.0))
    alone = sample(two, renderer, prompts, options, 3)
    assert [c.token_ids.tolist() for c in blended[0]] == [c.token_ids.tolist() for c in alone[0]]


def test_win_rates_by_hand():
    ids = np.array([1], dtype=np.int32)
    group = Group(prompt=ids, completions=(ids,) * 4, rewards=(0.2, 0.5, 0.7, 0.5), sources=(1, 1, 1, 2))
    silent = replace(group, rewards=(0.2, None, 0.7, None))
    partly = replace(group, rewards=(0.2, None, 0.7, 0.1))
    assert [one.rewards for one in win_rates_against_opponents([group, silent, partly])] == [
        (0.0, 0.5, 1.0),
        (None,) * 3,
        (1.0, None, 1.0),
    ]
    assert all(
        len(one.completions) == 3 and one.sources == () for one in win_rates_against_opponents([group])
    )


@pytest.mark.parametrize("rank", [0, 4])
def test_opponents_of_xpo_are_the_reference_s(config, rank):
    """After a step the policy has moved; what opponents write is still scored as the start would score it."""
    job = build_job(
        config(XPO(), "reference", lora=LoraOptions(rank=rank), sampling={"num_completions": 1}),
        Reporter(quiet=True),
    )
    with torch.no_grad():
        for parameter in job.policy.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    groups = job.source.supply(1).groups
    assert groups and all(sorted(group.sources) == [1, 2] and len(group.pairs) == 1 for group in groups)
    reference = job.anchors.reference(groups)
    policy = score_groups(job.policy, groups, job.config.layout)
    for group, by_reference, by_policy in zip(groups, reference, policy, strict=True):
        for k, source in enumerate(group.sources):
            ours, others = (by_policy, by_reference) if source == 1 else (by_reference, by_policy)
            np.testing.assert_allclose(group.behaviour_logp[k], ours[k], atol=1e-4)
            assert not np.allclose(group.behaviour_logp[k], others[k], atol=1e-2)


@pytest.mark.parametrize(
    ("objective", "opponent"), [(XPO(), "reference"), (NashMD(), "mixture"), (NashMD(beta=0.0), "reference")]
)
def test_runs_against_opponents(config, tmp_path, objective, opponent):
    result = train(config(objective, opponent), quiet=True)
    rows = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "train"]
    assert result.state == "finished" and len(rows) == 3
    assert (
        rows[-1]["samples_drawn"] == rows[-1]["reward_queries"] == 3 * 3 * 4
    )  # steps, prompts, three completions and the opponent's
    if isinstance(objective, NashMD):
        assert all(0 <= row["win_rate"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("objective", "opponent", "settings", "message"),
    [
        (XPO(), "none", {}, "xpo has another use of opponents"),
        (XPO(), "mixture", {}, "expected reference"),
        (HyPO(), "reference", {}, "hypo needs pairs of the data"),
        (DPO(), "reference", {}, "dpo has another use of opponents"),
        (INPO(), "mixture", {}, "inpo has another use of opponents"),
        (RLOO(), "two-sided", {}, "rloo has another use of opponents"),
        (DPO(), "two-sided", {"sampling": {"num_completions": 1}}, "at least 2"),
        (
            NashMD(),
            "mixture",
            {"collect": CollectOptions(opponent="mixture", opponent_share=-0.5)},
            "between policy and reference",
        ),
        (NashMD(), "mixture", {"collect": CollectOptions(opponent="mixture", data_share=0.5)}, "no opponent"),
        (
            NashMD(),
            "mixture",
            {"collect": CollectOptions(opponent="mixture", selection="top-fraction")},
            "no place",
        ),
    ],
)
def test_what_opponents_are_not_for(config, objective, opponent, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(objective, opponent, **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_two_sides_are_the_mixtures_with_both_signs(config, temperature):
    """Two own completions, then one of 1.5 z - 0.5 z_ref and one of 0.5 z + 0.5 z_ref, paired with each other."""
    settings = {"num_completions": 2, "temperature": temperature}
    job = build_job(config(DPO(), "two-sided", sampling=settings), Reporter(quiet=True))
    start = copy.deepcopy(job.policy.model)
    with torch.no_grad():
        for parameter in job.policy.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    seen = 0
    for group in job.source.supply(1).groups:
        assert all(len({sources(group, c), sources(group, r)}) == 1 for c, r in group.pairs)
        for ids, told, source in zip(group.completions, group.behaviour_logp, group.sources, strict=True):
            whole = [*group.prompt.tolist(), *ids.tolist()]
            own, other = plain_logits(job.policy.model, whole), plain_logits(start, whole)
            places = range(len(group.prompt) - 1, len(whole) - 1)
            shares = (0.0,) if source == 1 else (-0.5, 0.5)
            gaps = [
                max(
                    abs(
                        float((((1 - s) * own[t] + s * other[t]) / temperature).log_softmax(-1)[whole[t + 1]])
                        - a
                    )
                    for t, a in zip(places, told.tolist(), strict=True)
                )
                for s in shares
            ]
            assert min(gaps) < 1e-4
            seen += source == 2
    assert seen >= 2


def sources(group: Group, place: int) -> int:
    return group.sources[place]


def test_pairs_of_two_sides_by_hand():
    """Own completions with rewards 0.1, 0.9 and 0.4, sides 0.2 and 0.5; of the second prompt the own are equal."""
    ids = [np.array([k], dtype=np.int32) for k in range(5)]
    group = Group(
        prompt=ids[0], completions=tuple(ids), rewards=(0.1, 0.9, 0.4, 0.2, 0.5), sources=(1, 1, 1, 2, 2)
    )
    equal = replace(group, rewards=(0.3, 0.3, 0.3, 0.7, 0.5))
    silent = replace(group, rewards=(0.3, 0.3, 0.3, 0.5, 0.5))
    kept, dropped = select_sides([group, equal, silent], make_selection("best-vs-worst"), 0)
    assert dropped == {NO_PAIR: 1}
    assert [[(one.completions[c][0], one.completions[r][0]) for c, r in one.pairs] for one in kept] == [
        [(1, 0), (4, 3)],
        [(3, 4)],
    ]
    assert kept[0].rewards == (0.1, 0.9, 0.2, 0.5) and kept[1].sources == (2, 2)


@pytest.mark.parametrize("share", [-0.5, 0.5])
def test_a_mixture_of_either_sign_writes_one_completion_of_a_pair(config, tmp_path, share):
    collect = CollectOptions(opponent="mixture", opponent_share=share)
    assert train(config(DPO(), "mixture", collect=collect), quiet=True).state == "finished"
    rows = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "train"]
    assert rows[-1]["samples_drawn"] == 3 * 3 * 4


def test_settings_of_opponents():
    with pytest.raises(ConfigError, match="out of range"):
        CollectOptions(opponent="mixture", opponent_share=1.0)
    with pytest.raises(ConfigError, match="other than 0"):
        CollectOptions(opponent="mixture", opponent_share=0.0)
    with pytest.raises(ConfigError, match="above 0 for two sides"):
        CollectOptions(opponent="two-sided", opponent_share=-0.5)
    with pytest.raises(ConfigError, match="is of a mixture"):
        CollectOptions(opponent="reference", opponent_share=0.3)


def test_masks_follow_their_completions():
    """An opponent's completion is scored whole beside others that hold context, and the other way round."""
    ids = np.array([5, 6, 7], dtype=np.int32)
    mask = np.array([False, True, True])

    def drawn(scored):
        group = Group(prompt=ids, completions=(ids,), scored=scored, behaviour_logp=(np.zeros(2),))
        return Draw(groups=(group,), texts=(("t",),), ended=((True,),))

    whole = np.ones(3, dtype=bool)
    for one, two, expected in (((), (mask,), [whole, mask]), ((mask,), (), [mask, whole]), ((), (), [])):
        (group,) = with_opponents(drawn(one), drawn(two)).groups
        assert [part.tolist() for part in group.scored] == [part.tolist() for part in expected]
    sides = with_opponents(with_opponents(drawn((mask,)), drawn(())), drawn((mask,))).groups[0]
    assert [int(part.sum()) for part in take_completions(sides, (2, 1), ()).scored] == [2, 3]
