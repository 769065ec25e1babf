"""The proof of an attention function: equal in fp32; in bf16 as near to fp32 as plain attention, and finite."""

from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from preftune.model.attention_proof import SHAPES, prove_attention
from preftune.model.attention_segments import SEGMENTS
from preftune.model.kernels.likeness import no_further, row_errors
from preftune.model.load import LoadOptions, load_model, resolve_model
from tests.models import tiny_model

FEW = (SHAPES[0], (SHAPES[1][0][:1], 4))


def registered(name: str, change) -> str:
    """Scaled dot products whose output is changed."""

    def attend(module, query, key, value, mask, **settings):
        out, _ = sdpa_attention_forward(module, query, key, value, mask, **settings)
        return change(out), None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def in_16_bits(change):
    return lambda out: out if out.dtype == torch.float32 else change(out)


def test_errors_are_of_each_row_by_hand():
    truth = torch.tensor([[3.0, 4.0], [300.0, 400.0]])
    found = truth + torch.tensor([[0.5, 0.0], [0.0, 5.0]])
    torch.testing.assert_close(row_errors(found, truth), torch.tensor([0.1, 0.01]))


@pytest.mark.parametrize(("times", "is_far"), [(1.0, False), (2.9, False), (3.2, True)])
def test_three_times_the_error_of_the_original_is_allowed(times, is_far):
    truth = torch.full((4, 8), 2.0)
    usual, found = truth + 0.2, truth + 0.2 * times
    told = no_further([found], [usual], [truth])
    assert bool(told) == is_far
    assert not is_far or "times as far from fp32" in told


def test_what_is_not_finite_is_refused_also_where_the_original_is_not():
    bad = torch.tensor([[1.0, float("nan")]])
    assert no_further([bad], [bad], [torch.ones(1, 2)]) == "its numbers are not finite in bf16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3_sliding", "gemma3"])
def test_random_weights(name, dtype):
    model = tiny_model(name, std=0.1).to(dtype)
    assert prove_attention(model, "sdpa", "shared", "bf16", FEW) == ""
    assert model.config._attn_implementation == "sdpa"
    assert {p.dtype for p in model.parameters()} == {dtype} and all(
        p.grad is None for p in model.parameters()
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_difference_in_fp32_is_seen(precision):
    model = tiny_model("llama")
    name = registered("test_scaled", lambda out: 1.02 * out)
    assert "changes hidden states or gradients" in prove_attention(model, name, "shared", precision, FEW)
    assert model.config._attn_implementation == SEGMENTS


@pytest.mark.parametrize(
    ("label", "change", "told"),
    [
        ("far", in_16_bits(lambda out: 1.3 * out), "times as far from fp32"),
        ("nan", in_16_bits(lambda out: out * float("nan")), "not finite"),
        ("fails", in_16_bits(lambda out: out.missing), "does not run (AttributeError"),
    ],
)
def test_a_fault_in_bf16_alone_is_seen(label, change, told):
    """Under autocast queries are in fp32 on a CPU, so that the weights are in bf16 here."""
    model = tiny_model("llama").bfloat16()
    assert told in prove_attention(model, registered(f"test_{label}", change), "shared", "bf16", FEW)
    assert model.config._attn_implementation == SEGMENTS
    assert prove_attention(model, "sdpa", "shared", "bf16", FEW) == ""


@pytest.mark.real_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_weights(dtype):
    """In the first layers of SmolLM2 some numbers are a thousand times as large as the others: in bf16 two exact
    attentions are up to the largest number apart.
    """
    model = load_model(resolve_model("smollm2-135m-instruct"), LoadOptions(), dtype)
    model.model.layers = model.model.layers[:2]
    (group, *_) = SHAPES[1][0]
    short = replace(group, prompt=group.prompt[:90], completions=tuple(one[:20] for one in group.completions))
    probes = FEW[:1] if dtype == torch.float32 else (([short], 4),)
    assert prove_attention(model, "sdpa", "shared", "bf16", probes) == ""
