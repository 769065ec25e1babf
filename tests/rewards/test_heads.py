"""Rewards of an ensemble of heads: the mean, a head per prompt, a duel. The truth is plain transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from preftune.errors import ConfigError
from preftune.model.classifier import ENSEMBLE
from preftune.rewards import ask, resolve_reward
from preftune.rewards.heads import head_order, reward_of_heads
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.models import model_sizes

PROMPTS = ["Hi"] * 4 + ["Why?"] * 4
COMPLETIONS = [
    f"{start} {end}" for start in ("Well, the", "No") for end in ("sea is blue.", "sea", "green", "x")
]
HEADS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five heads that plain transformers made and saved."""
    folder, tokenizer = tmp_path_factory.mktemp("ensemble"), byte_tokenizer(CHATML, eos="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **model_sizes(),
        head_dim=8,
        pad_token_id=0,
        id2label={number: f"{ENSEMBLE}{number}" for number in range(HEADS)},
        problem_type="regression",
    )
    model = AutoModelForSequenceClassification.from_config(config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def values(folder) -> np.ndarray:
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        byte_tokenizer(CHATML, eos="<|im_end|>"),
    )
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**ids).logits[0].numpy())
    return np.array(rows)


def judged(spec: str, **columns):
    return ask(resolve_reward(spec), "model", list(PROMPTS), list(COMPLETIONS), columns)


def test_the_mean_and_the_disagreement(folder, values):
    for spec in (f"model:{folder}", f"model(path={folder}, heads=mean)"):
        found = judged(spec)
        assert found.rewards == pytest.approx(values.mean(1).tolist(), abs=1e-5)
        assert found.parts["disagreement"] == pytest.approx(values.std(1).tolist(), abs=1e-5)
    one = judged(f"model(path={folder}, label={ENSEMBLE}3)")
    assert one.rewards == pytest.approx(values[:, 3].tolist(), abs=1e-5) and not one.parts


def test_one_head_for_each_prompt(folder, values):
    spec = f"model(path={folder}, heads=thompson)"
    first = judged(spec).rewards
    used = set()
    for start in (0, 4):
        matches = [
            k
            for k in range(HEADS)
            if np.allclose(first[start : start + 4], values[start : start + 4, k], atol=1e-5)
        ]
        assert len(matches) == 1
        used.add(matches[0])
    assert judged(spec).rewards == first
    later = [judged(spec, training_step=step).rewards for step in range(1, 8)]
    assert any(one != first for one in later)
    assert any(
        judged(f"model(path={folder}, heads=thompson, seed={k})").rewards != first for k in range(1, 5)
    )
    sums = judged(f"2*model(path={folder}, heads=thompson) + 1*regex(pattern=sea)")
    assert sums.parts["model/disagreement"] == pytest.approx(values.std(1).tolist(), abs=1e-5)


def test_each_head_is_drawn_equally_often():
    drawn = np.bincount([head_order(f"prompt {k}", 0, 0, 4)[0] for k in range(4000)], minlength=4)
    assert drawn.min() > 1000 - 4 * (4000 * 3 / 16) ** 0.5 and drawn.max() < 1000 + 4 * (4000 * 3 / 16) ** 0.5


def test_a_duel_rewards_the_choices_of_two_heads():
    """By a loop over heads in the prompt's order."""
    values = np.random.default_rng(1).normal(size=(60, 6))
    prompts = [f"p{k % 15}" for k in range(60)]
    found = reward_of_heads(values, prompts, [3] * 60, "duel", seed=2).rewards
    for prompt in set(prompts):
        members = [k for k in range(60) if prompts[k] == prompt]
        arms: list[int] = []
        for head in head_order(prompt, 3, 2, 6):
            best = max(members, key=lambda k: values[k, head])
            if best not in arms and len(arms) < 2:
                arms.append(best)
        for k in members:
            assert found[k] == (pytest.approx(values[k].mean()) if k in arms else None)
    agreed = reward_of_heads(np.array([[1.0, 2.0], [0.0, 0.5]]), ["p", "p"], [0, 0], "duel", seed=0)
    assert agreed.rewards == [1.5, None]


def test_mistakes(folder):
    for words, wanted in (
        ("heads=duel, label=head_0", "label and heads both choose outputs"),
        ("seed=3", "seed of reward 'model' has no effect"),
        ("heads=median", "heads"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            resolve_reward(f"model(path={folder}, {words})")
