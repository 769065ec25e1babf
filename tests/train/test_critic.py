"""A critic that starts as a reward model: its values are those of plain transformers, it trains apart from the
policy, and it is saved as a reward model.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preftune.errors import ConfigError, DataError, ModelError
from preftune.model.layout import collate
from preftune.model.policy import score
from preftune.objectives.dpo import DPO
from preftune.objectives.ppo import PPO
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions
from preftune.train.loop import resume, train
from preftune.train.models import load_models
from preftune.train.options import TrainConfig
from preftune.train.processes import ALONE
from preftune.train.setup import build_job
from tests.folders import same_bits, tiny_config, weights_of, write_rows
from tests.models import random_groups

RETURNS = PPO(normalize_returns=False, kl_coef=0.0, lam=1.0)


@pytest.fixture(scope="module")
def reward_model(tiny_folder, tmp_path_factory):
    """A reward model with a random head and other weights than the policy."""
    folder = tmp_path_factory.mktemp("critic") / "reward"
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config(tiny_folder, reward_model, tmp_path):
    prompts = write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in ("sea", "tea", "sun", "sky")]
    )

    def made(name="run", **settings) -> TrainConfig:
        chosen = {"objective": RETURNS, "critic": reward_model, "epochs": 9.0, "max_steps": 2} | settings
        sampling = SampleOptions(num_completions=2, max_new_tokens=4)
        more = dict(
            source="on-policy", reward="length.min", batch_size=2, eval_fraction=0.0, sampling=sampling
        )
        return tiny_config(tiny_folder, prompts, tmp_path / name, **more, **chosen)

    return made


def test_values_are_the_scores_of_each_prefix(config, reward_model):
    policy = load_models(config().model_plan, Reporter(quiet=True), ALONE).policy
    groups = random_groups(seed=2, num_groups=3, most=6)
    with torch.no_grad():
        values = score(policy, collate(groups, config().layout, policy.sharing), frozenset({"value"})).value
    plain = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    expected = []
    for group in groups:
        for ids in group.completions:
            whole = torch.tensor([*group.prompt, *ids])[None]
            with torch.no_grad():
                scores = plain.score(plain.model(whole).last_hidden_state)[0, :, 0]
            expected.append(scores[len(group.prompt) - 1 : -1])
    assert values is not None and torch.allclose(values, torch.cat(expected), atol=1e-5)
    assert values.std() > 0.05


def test_it_trains_apart_and_resumes_bit_for_bit(config, reward_model):
    settings = dict(objective=PPO(normalize_returns=False, value_clip=0.2), save_every=1)
    whole = train(config("whole", **settings), quiet=True).folder
    critic = weights_of(whole / "critic")
    before = load_file(Path(reward_model) / "model.safetensors")
    assert all(
        not torch.equal(critic[name], before[name])
        for name in before
        if "norm" not in name and "embed" not in name
    )
    assert not (whole / "final" / "value_head.safetensors").exists()
    AutoModelForSequenceClassification.from_pretrained(whole / "critic")
    cut = config("cut", **settings)
    shutil.copytree(
        whole, cut.output, ignore=shutil.ignore_patterns("final", "critic", "report.html", "step-000002")
    )
    (Path(cut.output) / "status.json").write_text('{"state": "running", "step": 0, "message": ""}')
    assert resume(cut, quiet=True).step == 2
    for part in ("final", "critic"):
        assert same_bits(weights_of(Path(cut.output) / part), weights_of(whole / part))


@pytest.mark.parametrize("apart", [True, False])
def test_no_gradient_of_the_critic_reaches_the_policy(apart, config):
    """The weight of the critic's loss plays no part in the policy, unless the critic is a head on the policy, which
    is 0 in the first step.
    """
    finals, steps = [], 1 if apart else 2
    for name, weight in {"much": 5.0, "little": 0.01}.items():
        objective = PPO(normalize_returns=False, value_clip=10.0, vf_coef=weight)
        more = {} if apart else {"critic": None}
        optim = {"learning_rate": 1e-3, "max_grad_norm": 0.0}
        made = config(name, objective=objective, max_steps=steps, optim=optim, **more)
        finals.append(weights_of(train(made, quiet=True).folder / "final"))
    names = [name for name in finals[0] if name.startswith("model.")]
    same = [torch.equal(finals[0][name], finals[1][name]) for name in names]
    assert all(same) if apart else not any(same)


def test_what_cannot_be_a_critic_is_refused(config, tiny_folder, reward_model, tmp_path):
    with pytest.raises(ConfigError, match="critic has no effect on an objective without a critic; got dpo"):
        config(objective=DPO())
    with pytest.raises(ConfigError, match="normalize_returns true; expected false"):
        config(objective=PPO())
    with pytest.raises(ConfigError, match="critic is not a reward model"):
        load_models(config(critic=str(tiny_folder)).model_plan, Reporter(quiet=True), ALONE)
    other = tmp_path / "other"
    shutil.copytree(reward_model, other)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ours = config(critic=str(other))
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(other)
    load_models(ours.model_plan, Reporter(quiet=True), ALONE)  # more tokens do no harm
    short = AutoModelForSequenceClassification.from_pretrained(reward_model)
    short.config.max_position_embeddings = 8
    short.save_pretrained(other)
    with pytest.raises(DataError, match="groups of at most 5 tokens"):
        build_job(ours, Reporter(quiet=True))
    strange = tmp_path / "strange"
    shutil.copytree(reward_model, strange)
    path = strange / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match="different tokenizers"):
        load_models(config(critic=str(strange)).model_plan, Reporter(quiet=True), ALONE)
