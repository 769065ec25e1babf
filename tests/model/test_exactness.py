"""Shared = unshared = one sequence at a time, values and gradients of all parameters, on several
architectures.
"""

import numpy as np
import pytest
import torch

from preftune.errors import ModelError
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, model_head, score
from preftune.model.proof import choose_sharing
from tests.models import CONFIGS, random_groups, tiny_model

GROUPS = random_groups(seed=5, num_groups=4)


def plain(model, groups) -> torch.Tensor:
    """The definition: each sequence alone through the Hugging Face model."""
    parts = []
    for group in groups:
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
            logp = model(input_ids=ids[None], use_cache=False).logits[0].to(model.dtype).log_softmax(-1)
            parts.append(
                logp[len(group.prompt) - 1 : -1].gather(1, ids[len(group.prompt) :, None]).squeeze(1)
            )
    return torch.cat(parts)


def values_and_gradients(model, logp) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    mix = torch.randn(len(logp), generator=torch.Generator().manual_seed(6)).to(logp.dtype)
    model.zero_grad()
    (mix * logp).sum().backward()
    return logp.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def policy_of(model, sharing) -> Policy:
    return Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("sharing", ["flat", "shared", "packed", "single"])
def test_every_layout_is_exact(name, dtype, tolerance, sharing):
    if name == "gemma2" and dtype == torch.float64:
        pytest.skip("its eager attention takes the softmax in fp32 whatever the dtype")
    if name == "gemma2" and sharing == "flat":
        pytest.skip("its soft-capped scores need eager attention, which takes masks")
    model = tiny_model(name, dtype)
    expected, wanted = values_and_gradients(model, plain(model, GROUPS))
    batch = collate(GROUPS, LayoutOptions(micro_batch_tokens=120), sharing)
    assert (len(batch.input_ids) > 1) == (sharing != "flat")  # several rows, with padding at their ends
    got, gradients = values_and_gradients(model, score(policy_of(model, sharing), batch).logp)
    scale = expected.abs().max()
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=tolerance)
    assert gradients.keys() == wanted.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(
            gradients[parameter] / largest,
            gradient / largest,
            rtol=0,
            atol=tolerance,
            msg=lambda m, p=parameter: f"{p}: {m}",
        )


@pytest.mark.parametrize("name", ["llama", "qwen3_sliding", "gemma2", "gpt2"])
@pytest.mark.parametrize("sharing", ["flat", "shared", "packed", "single"])
def test_the_head_after_each_token_is_exact(name, sharing):
    """`value_after` is the head on the state of the token itself, `value` on that of the one before it."""
    if name == "gemma2" and sharing == "flat":
        pytest.skip("its soft-capped scores need eager attention, which takes masks")
    model = tiny_model(name)
    head = torch.nn.Linear(32, 1, bias=False)
    body = model.get_decoder()
    expected = []
    for group in GROUPS:
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
            along = head(body(input_ids=ids[None], use_cache=False).last_hidden_state[0]).squeeze(1)
            expected.append(along[len(group.prompt) - 1 :])
    batch = collate(GROUPS, LayoutOptions(micro_batch_tokens=120), sharing, read_last=True)
    policy = Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="", value_head=head)
    found = score(policy, batch, frozenset({"value", "value_after"}))
    torch.testing.assert_close(
        found.value_after, torch.cat([one[1:] for one in expected]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found.value, torch.cat([one[:-1] for one in expected]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logp, plain(model, GROUPS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_probe_finds_the_densest_layout(name):
    dense = ("shared", "its attention is eager") if name == "gemma2" else ("flat", "")
    assert choose_sharing(tiny_model(name), True) == dense
    assert choose_sharing(tiny_model(name), False)[0] == "packed"


def test_layers_that_a_mask_cannot_express_fall_back():
    model = tiny_model("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    sharing, reason = choose_sharing(model, True)
    assert sharing == "single"
    assert "mask" in reason


def test_a_head_that_does_more_than_it_says_is_refused():
    """The model's own logits are scaled where no configuration tells: nothing can be scored, and it must not
    be silent.
    """
    model = tiny_model("llama")
    head = model.get_output_embeddings()
    model.forward = lambda **kw: type("Out", (), {"logits": 2 * head(model.model(**kw).last_hidden_state)})()
    with pytest.raises(ModelError, match="cannot be scored exactly"):
        choose_sharing(model, True)


def test_a_head_that_is_not_linear_is_refused():
    model = tiny_model("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="output head"):
        model_head(model)
