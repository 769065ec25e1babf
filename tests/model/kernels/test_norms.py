"""Norms in fewer passes: the numbers of the equation and of transformers' own, and only where they are those."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from preftune.model.kernels.norms import quicken_norms, rms_norm
from preftune.model.layout import LayoutOptions, collate
from preftune.model.load import LoadOptions, load_model
from preftune.model.policy import Policy, score
from tests.models import CONFIGS, random_groups, tiny_model

GROUPS = random_groups(seed=7, num_groups=3)
QUICK = {"llama": 5, "mistral": 5, "granite": 5, "qwen3": 9, "qwen3_sliding": 9}
"""Two norms in each of two layers, one at the end; Qwen3 norms queries and keys too. Gemma's add 1 to the
weight.
"""


def test_the_equation_by_hand():
    states = torch.tensor([[3.0, 4.0]], requires_grad=True)  # mean of squares 12.5
    weight = torch.tensor([2.0, 0.5], requires_grad=True)
    out = rms_norm(states, weight, 3.5)  # root of 16: 4
    assert out.tolist() == [[1.5, 0.5]]
    out.backward(torch.tensor([[1.0, 2.0]]))
    # w g = (2, 1); sum of w g x = 10; d x = w g / 4 - x 10 / (2 x 64)
    assert states.grad is not None and weight.grad is not None
    torch.testing.assert_close(states.grad, torch.tensor([[0.5 - 30 / 128, 0.25 - 40 / 128]]))
    torch.testing.assert_close(weight.grad, torch.tensor([0.75, 2.0]))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 9),
    eps=st.sampled_from([1e-6, 1e-2, 1.0]),
    seed=st.integers(0, 99),
)
def test_derivatives_are_those_of_differences(rows, width, eps, seed):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(2, rows, width, generator=draw, dtype=torch.double, requires_grad=True)
    weight = torch.randn(width, generator=draw, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, eps), (states, weight), atol=1e-6, rtol=1e-4)


def shaken(model: nn.Module) -> nn.Module:
    """With norms that do not all begin at one."""
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model


def learned(model, precision="fp32") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy = Policy(model=model, precision=precision, sharing="shared", sharing_reason="")
    logp = score(policy, collate(GROUPS, LayoutOptions(), "shared")).logp
    mix = torch.randn(len(logp), generator=torch.Generator().manual_seed(9))
    (mix * logp).sum().backward()
    return logp.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_computes_the_same(name):
    model = shaken(tiny_model(name))
    expected, wanted = learned(copy.deepcopy(model))
    assert quicken_norms(model) == QUICK.get(name, 0)
    found, gradients = learned(model)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert gradients.keys() == wanted.keys()
    for key, right in wanted.items():
        torch.testing.assert_close(gradients[key], right, atol=1e-5 * float(right.abs().max()) + 1e-7, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_under_bf16_products_it_is_the_same_too(name):
    model = shaken(tiny_model(name))
    expected, _ = learned(copy.deepcopy(model), "bf16")
    assert quicken_norms(model)
    found, _ = learned(model, "bf16")
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_weights_in_bf16_keep_their_own_norm():
    model = shaken(tiny_model("llama"))
    quicken_norms(model)
    model, plain = model.to(torch.bfloat16), shaken(tiny_model("llama")).to(torch.bfloat16)
    ids = torch.arange(1, 9)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)


def test_a_copy_has_norms_of_its_own():
    model = shaken(tiny_model("llama"))
    quicken_norms(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    ids = torch.arange(1, 9)[None]
    assert not other(ids).logits.any()
    assert model(ids).logits.any()


class Counted(TorchDispatchMode):
    """Whether the backward was asked for gradients of norms' weights."""

    def __init__(self):
        super().__init__()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_layer_norm_backward.default:
            self.masks.append(args[-1])
        return func(*args, **(kwargs or {}))


def test_frozen_weights_get_no_gradient_and_none_is_computed():
    model = tiny_model("llama")
    quicken_norms(model)
    model.requires_grad_(False).model.embed_tokens.weight.requires_grad_(True)
    with Counted() as counted:
        learned(model)
    assert counted.masks == [[True, False, False]] * 5
    assert model.model.norm.weight.grad is None


class ShiftedRMSNorm(nn.Module):
    """Like the others by its name and its parts; the small number stands outside of the root."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.full((6,), 0.5)), 1e-5

    def forward(self, states):
        return self.weight * states / (states.square().mean(-1, keepdim=True).sqrt() + self.eps)


def test_what_computes_something_else_stays_as_it_is():
    norm = ShiftedRMSNorm()
    assert quicken_norms(norm) == 0
    assert "forward" not in vars(norm)


def test_a_loaded_model_has_quick_norms(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), LoadOptions())
    assert (
        sum("forward" in vars(module) for module in model.modules() if "Norm" in type(module).__name__) == 5
    )
