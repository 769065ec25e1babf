"""A model in 16 bits computes in fp32 for a while, and is what it was."""

import copy

import pytest
import torch

from preftune.model.kernels.recompute import layers_of
from preftune.model.kernels.widen import in_fp32
from preftune.model.load import LoadOptions, load_model, resolve_model
from preftune.model.proof import choose_sharing
from preftune.sampling.engine import choose_engine
from tests.models import tiny_model

IDS = torch.tensor([[3, 5, 1, 7, 2, 9]])


def low_model(name: str, dtype: torch.dtype = torch.bfloat16):
    return tiny_model(name).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_it_is_the_model_in_fp32(name, dtype):
    model = low_model(name, dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with in_fp32(model):
        found = model(input_ids=IDS).logits
        assert {p.dtype for layer in layers_of(model) for p in layer.parameters()} == {
            dtype
        }  # one layer at a time
    assert (
        torch.equal(found, copy.deepcopy(model).float()(input_ids=IDS).logits)
        and found.dtype == torch.float32
    )
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])
    assert not torch.equal(found, model(input_ids=IDS).logits.float())  # no hook is left


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_gradients_are_those_of_the_model_in_fp32(name):
    """Of the embeddings, through layers whose weights are in bf16 again when the backward comes to them."""
    model = low_model(name)
    embedded = model.get_input_embeddings()(IDS).float()
    expected, found = (embedded.clone().requires_grad_() for _ in range(2))
    copy.deepcopy(model).float()(inputs_embeds=expected, use_cache=False).logits.square().sum().backward()
    with in_fp32(model, gradients=True):
        model(inputs_embeds=found, use_cache=False).logits.square().sum().backward()
    assert expected.grad is not None and torch.equal(found.grad, expected.grad)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any("forward" in vars(layer) for layer in layers_of(model))


def test_weights_that_are_in_fp32_stay_so():
    model = low_model("llama")
    norm = layers_of(model)[0].input_layernorm
    norm.weight.data = norm.weight.data.float() + 1e-6
    kept = norm.weight.data.clone()
    with in_fp32(model):
        model(input_ids=IDS)
    assert norm.weight.dtype == torch.float32 and torch.equal(norm.weight.data, kept)
    assert layers_of(model)[0].mlp.gate_proj.weight.dtype == torch.bfloat16


def test_an_error_in_a_layer_leaves_the_model_as_it_was():
    model = low_model("llama")

    def fail(*_):
        raise ValueError("in a layer")

    broken = layers_of(model)[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="in a layer"), in_fp32(model):
        model(input_ids=IDS)
    broken.remove()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers_of(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_finer_model_is_left_alone(dtype):
    model = tiny_model("llama").to(dtype)
    with in_fp32(model):
        assert model(input_ids=IDS).logits.dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.real_model
def test_rounding_does_not_hide_what_is_exact():
    """SmolLM2 in bf16 is off by nats on the probes, whatever the layout; in fp32 its layouts and engines are
    equal.
    """
    model = load_model(resolve_model("smollm2-135m-instruct"), LoadOptions(), torch.bfloat16)
    assert choose_sharing(model, True) == ("flat", "")
    assert choose_engine(model) == ("shared", "")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
