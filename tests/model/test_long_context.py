"""Rotary embeddings that depend on the longest row: every sequence is scored as if alone."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from preftune.model.attention_segments import SEGMENTS
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_layout, context_limit
from preftune.types import Group

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def model_of(kind):
    if kind == "longrope":
        rope = {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "factor": 8.0,
            "long_factor": [8.0, 16.0, 32.0, 64.0],
            "original_max_position_embeddings": 32,
        }
        config = Phi3Config(**SHAPE, max_position_embeddings=256, rope_parameters=rope, sliding_window=None)
        config.original_max_position_embeddings = 32
    elif kind == "dynamic":
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        config = LlamaConfig(**SHAPE, max_position_embeddings=32, rope_parameters=rope)
    else:
        config = LlamaConfig(**SHAPE, max_position_embeddings=32)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model


def group(prompt, *lengths):
    random = np.random.default_rng(prompt)
    ids = [random.integers(3, 60, count).astype(np.int32) for count in (prompt, *lengths)]
    return Group(prompt=ids[0], completions=tuple(ids[1:]))


def alone(kind, one):
    parts = []
    for completion in one.completions:
        ids = torch.from_numpy(np.concatenate([one.prompt, completion])).long()[None]
        with torch.no_grad():
            logp = model_of(kind)(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        targets = ids[0, len(one.prompt) :, None]
        parts.append(logp[len(one.prompt) - 1 : -1].gather(1, targets)[:, 0].numpy())
    return parts


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_short_rows_beside_long_ones(kind):
    model = model_of(kind)
    assert context_limit(model) == 32
    sharing, reason = choose_layout(model, LayoutOptions(), "fp32")
    assert sharing == "alone" and "more than 32 tokens" in reason
    policy = Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")
    groups = [group(5, 4, 9), group(30, 20, 2), group(40, 3, 8), group(6, 7, 2)]
    for found, one in zip(score_groups(policy, groups, LayoutOptions()), groups, strict=True):
        for got, wanted in zip(found, alone(kind, one), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_within_the_original_context_are_dense(kind):
    assert choose_layout(model_of(kind), LayoutOptions(), "fp32", longest=32)[0] == "flat"


def test_plain_rotary_embeddings_have_no_such_length():
    assert context_limit(model_of("plain")) is None
