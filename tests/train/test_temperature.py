"""Sampling temperature: policy, reference and behaviour policy are scored under the distribution that samples."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from preftune.model.adapters import LoraOptions
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy, make_value_head, score_groups
from preftune.model.reference import ReferenceOptions
from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.clipping import kl_estimate
from preftune.objectives.group_regression import AGRO, GVPO, CoPG
from preftune.objectives.grpo import DAPO, GRPO, GSPO, DrGRPO
from preftune.objectives.nash_md import NashMD
from preftune.objectives.ppo import PPO
from preftune.objectives.rebel import REBEL
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.reinforce_plus_plus import ReinforcePlusPlus
from preftune.objectives.rloo import RLOO
from preftune.objectives.sft import SFT
from preftune.objectives.topr import TOPR
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_mismatched, cut_step, make_score
from preftune.train.loop import train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.setup import build_job
from preftune.train.step import couple_step
from preftune.types import Group
from tests.folders import metric_rows, tiny_config, write_rows
from tests.models import model_sizes

TEMPERATURES = [0.7, 1.0, 1.3]
REWARD = """
def vowels(prompts, completions, **columns):
    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture(scope="module")
def on_policy(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("temperature")
    (folder / "taste.py").write_text(REWARD)
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in "abcdef"])
    runs = itertools.count()

    def made(objective, temperature, **settings):
        sampling = {"num_completions": 4, "max_new_tokens": 8, "temperature": temperature}
        chosen = {
            "source": "on-policy",
            "reward": f"{folder / 'taste.py'}:vowels",
            "objective": objective,
            "batch_size": 3,
            "max_steps": 1,
            "eval_fraction": 0.0,
            "sampling": SampleOptions(**sampling),
        } | settings
        return tiny_config(tiny_folder, prompts, folder / f"run{next(runs)}", **chosen)

    return made


@pytest.fixture(scope="module")
def fresh(on_policy):
    """For each temperature: a run that has drawn its first groups, with every kind of signal on them."""
    found = {}
    for temperature in TEMPERATURES:
        job = build_job(on_policy(REBEL(), temperature), Reporter(quiet=True))
        groups = [
            replace(
                group,
                pairs=((0, 1), (2, 3)),
                probabilities=(1.0, 1.0),
                labels=(1, -1, 1, -1),
                sources=(1, 1, 1, 2),
                rewards=(0.4, 0.1, 0.3, 0.2),
            )
            for group in job.source.supply(1).groups
        ]
        found[temperature] = job, groups
    return found


def scored(fresh, objective, temperature):
    """What the objective sees of fresh samples in the first step."""
    job, groups = fresh[temperature]
    policy = replace(job.policy, value_head=make_value_head(job.policy.model))
    layout = job.config.layout
    anchors = job.anchors if "behaviour_logp" in objective.needs else replace(job.anchors, behaviour=None)
    score = make_score(policy, objective, anchors, 1.0 if objective.imitates else temperature)
    (piece,) = cut_step(groups, objective.signal, policy, layout)
    mismatched = cut_mismatched(groups, objective, policy, layout)
    (coupling,), _ = couple_step([piece], mismatched, objective, score, None)
    return replace(score(piece), coupling=coupling), piece.signal


COMPARE = [
    name
    for name, kind in OBJECTIVES.items()
    if kind().needs & {"ref_logp", "behaviour_logp"}
    and not kind().needs & {"contrast", "kl_to_ref"}
    and not any(need in kind().needs for need in ("kl_from_ref", "ref_entropy_share"))
]
"""Objectives that compare two models token by token. Those that compare whole distributions take both from one
function with one temperature."""


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", COMPARE)
def test_fresh_samples_have_ratio_one_and_no_distance(fresh, name, temperature):
    objective = OBJECTIVES[name]()
    scores, signal = scored(fresh, objective, temperature)
    losses = objective(scores, signal)
    compared = {"ref_logp", "behaviour_logp"} & objective.needs
    assert compared
    for anchor in (getattr(scores, name) for name in compared):
        ratio = (scores.logp - anchor).detach()
        assert ratio.exp().mean().item() == pytest.approx(1.0, abs=1e-5)
        assert kl_estimate("k3", ratio).mean().item() == pytest.approx(0.0, abs=1e-5)
        assert ratio.mean().item() == pytest.approx(0.0, abs=1e-5)
    metrics = {key: value.mean().item() for key, value in losses.metrics.items() if value.numel()}
    assert metrics.get("ratio/mean", 1.0) == pytest.approx(1.0, abs=1e-5)
    assert metrics.get("ratio/clipped", 0.0) == 0.0
    assert metrics.get("kl", 0.0) == pytest.approx(0.0, abs=1e-5)


RATIOS = [GRPO(), DAPO(), GSPO(), DrGRPO(), PPO(), ReinforcePlusPlus(), TOPR(), RLOO(clip=0.2)]


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("objective", RATIOS, ids=lambda one: type(one).__name__)
def test_the_first_step_of_a_run_logs_it(on_policy, objective, temperature):
    run = train(on_policy(objective, temperature), quiet=True)
    (row,) = [row for row in metric_rows(run.folder) if row["phase"] == "train"]
    assert row["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    assert row.get("ratio/clipped", 0.0) == 0.0
    assert row.get("kl", 0.0) == pytest.approx(0.0, abs=1e-5)


REFERENCES = {
    "live": {},
    "adapter": {"lora": LoraOptions(rank=2)},
    "following": {"reference": ReferenceOptions(update_every=1, update_rate=0.5)},
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_every_reference_is_scored_at_the_temperature(on_policy, kind):
    job = build_job(on_policy(REBEL(), 0.7, **REFERENCES[kind]), Reporter(quiet=True))
    groups = job.source.supply(1).groups
    anchor = np.concatenate([one for group in job.anchors.reference(groups) for one in group])
    drawn = np.concatenate([one for group in groups for one in group.behaviour_logp])
    np.testing.assert_allclose(anchor, drawn, atol=1e-5)
    plain = score_groups(job.policy, groups, job.config.layout)
    assert np.abs(anchor - np.concatenate([one for group in plain for one in group])).mean() > 0.05


def test_held_out_divergence_and_entropy_are_of_the_distribution_that_samples(on_policy):
    found = {}
    for temperature in (0.7, 1.3):
        config = on_policy(RLOO(), temperature, eval_fraction=0.5, max_steps=1)
        held = [row for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "eval"]
        assert held[0]["eval_kl"] == pytest.approx(0.0, abs=1e-4)
        found[temperature] = held[0]["eval_entropy"]
    assert found[0.7] < found[1.3]


def test_imitation_is_of_the_model_as_it_is(on_policy, fresh):
    assert on_policy(RLOO(), 0.7).scored_at == 0.7
    config = on_policy(SFT(), 0.7, collect=CollectOptions(selection="best-of-n"))
    assert (config.scored_at, config.sampled_at) == (1.0, 0.7)
    job, groups = fresh[0.7]
    scores, _ = scored(fresh, SFT(), 0.7)
    plain = score_groups(job.policy, groups, job.config.layout)
    expected = np.concatenate([one for group in plain for one in group])
    found = scores.logp.detach().numpy()  # a step may lay its groups out in another order
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-5)


def test_data_beside_samples_are_scored_alike(on_policy, tmp_path, tiny_folder):
    rows = [{"prompt": f"Say {word}.", "chosen": "It is.", "rejected": "No idea."} for word in "abcdef"]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    config = replace(
        on_policy(OBJECTIVES["dpo"](), 0.7, collect=CollectOptions(data_share=0.5), batch_size=6), data=data
    )
    (row,) = [row for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "train"]
    assert row["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert row["log_ratios/chosen"] == pytest.approx(0.0, abs=1e-4)


# --- the gradient, on a model whose completions can all be enumerated ---

WORDS, LENGTH, BETA = 5, 2, 0.3
COMPLETIONS = [np.array(ids, dtype=np.int32) for ids in itertools.product(range(WORDS), repeat=LENGTH)]
VALUES = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
PROMPT = np.array([1, 3], dtype=np.int32)


def small_policy(seed: int) -> Policy:
    """A model of five words in fp64 whose distribution is far from uniform."""
    config = LlamaConfig(
        vocab_size=WORDS,
        **(model_sizes(hidden=8, inner=8, layers=1, heads=2) | dict(num_key_value_heads=2)),
        max_position_embeddings=16,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return Policy(model=model, precision="fp32", sharing="single", sharing_reason="")


def logps_of(policy: Policy, temperature: float) -> torch.Tensor:
    """[completion, token]: log-probabilities by the model's own forward, with a gradient."""
    ids = torch.tensor(np.stack([np.concatenate([PROMPT, one]) for one in COMPLETIONS])).long()
    logits = policy.model(input_ids=ids).logits[:, len(PROMPT) - 1 : -1]
    return (logits / temperature).log_softmax(2).gather(2, ids[:, len(PROMPT) :, None]).squeeze(2)


def gradient_of(policy: Policy, value: torch.Tensor) -> torch.Tensor:
    """Of a policy that has no gradient yet."""
    value.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def expected_gradient(objective: Objective, policy: Policy, reference: Policy, temperature: float):
    """Of the objective's loss over every group of two completions, each as likely as the tempered policy makes
    it."""
    chance = logps_of(policy, temperature).detach().sum(1).exp()
    places = list(itertools.product(range(len(COMPLETIONS)), repeat=2))
    own, anchor = (logps_of(one, temperature).detach().numpy() for one in (policy, reference))
    groups = [
        Group(
            prompt=PROMPT,
            completions=(COMPLETIONS[i], COMPLETIONS[k]),
            rewards=(float(VALUES[i]), float(VALUES[k])),
            behaviour_logp=(own[i], own[k]),
        )
        for i, k in places
    ]
    index = {one.tobytes(): i for i, one in enumerate(COMPLETIONS)}
    anchors = Anchors(
        reference=lambda part: [[anchor[index[ids.tobytes()]] for ids in one.completions] for one in part],
        behaviour=lambda part: [list(one.behaviour_logp) for one in part],
    )
    layout = LayoutOptions(micro_batch_tokens=10**6)
    (piece,) = cut_step(groups, objective.signal, policy, layout)
    losses = objective(make_score(policy, objective, anchors, temperature)(piece), piece.signal)
    weight = losses.weight.double().view(len(groups), -1)
    of_group = (losses.per_unit.double().view(len(groups), -1) * weight).sum(1) / weight.sum(1)
    pairs = torch.tensor(places)
    return gradient_of(policy, (of_group * chance[pairs[:, 0]] * chance[pairs[:, 1]]).sum())


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("objective", "beta", "factor"),
    [
        (REINFORCE(beta=BETA), BETA, 1.0),
        (RLOO(beta=BETA), BETA, 1.0),
        (RLOO(beta=0.0, clip=0.2), 0.0, 1.0),
        (DrGRPO(max_tokens=1), 0.0, 0.5),
        (TOPR(), 0.0, 1.0),
        (REBEL(eta=0.4, kl_coef=BETA), BETA, 4 * 0.4),
        (CoPG(beta=BETA), BETA, 4 * BETA),
        (AGRO(beta=BETA), BETA, BETA),
        (GVPO(beta=BETA), 0.0, BETA),
        (NashMD(beta=BETA), BETA, 1.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_the_gradient_is_that_of_the_tempered_policy_s_reward(objective, beta, factor, temperature):
    """d -( E[r] - beta * KL(pi_T || ref_T) ), over all completions of a model of five words."""
    policy, reference = small_policy(1), small_policy(2)
    found = expected_gradient(objective, policy, reference, temperature)
    policy = small_policy(1)
    logp, anchor = (logps_of(one, temperature).sum(1) for one in (policy, reference))
    exact = gradient_of(policy, -(logp.exp() * (VALUES - beta * (logp - anchor.detach()))).sum())
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(found, factor * exact, rtol=1e-5, atol=1e-6 * exact.abs().max().item())
