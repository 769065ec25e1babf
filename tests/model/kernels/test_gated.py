"""Gated MLPs that keep less: the same bits, and only where they compute what they are taken for."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from preftune.model.kernels.gated import down_of_silu_times, lighten_mlps, silu_times
from preftune.model.load import LoadOptions, load_model
from tests.model.kernels.test_norms import learned
from tests.models import CONFIGS, tiny_model

GATED = {"llama", "mistral", "granite", "qwen3", "qwen3_sliding"}


def test_the_equation_by_hand():
    gate = torch.tensor([0.0, 2.0], requires_grad=True)
    up = torch.tensor([3.0, -1.0], requires_grad=True)
    out = silu_times(gate, up)
    out.backward(torch.tensor([1.0, 10.0]))
    share = 1 / (1 + torch.e**-2)  # the sigmoid of 2
    torch.testing.assert_close(out.detach(), torch.tensor([0.0, -2 * share]))
    assert gate.grad is not None and up.grad is not None
    torch.testing.assert_close(gate.grad, torch.tensor([0.5 * 3, -10 * (share + 2 * share * (1 - share))]))
    torch.testing.assert_close(up.grad, torch.tensor([0.0, 20 * share]))


def test_derivatives_are_those_of_differences():
    draw = torch.Generator().manual_seed(1)
    gate, up = (torch.randn(4, 5, generator=draw, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(silu_times, (gate, up))


@pytest.mark.parametrize("trains", [True, False])
def test_derivatives_through_the_product_are_those_of_differences(trains):
    draw = torch.Generator().manual_seed(2)
    gate, up = (
        torch.randn(1, 4, 5, generator=draw, dtype=torch.double, requires_grad=True) for _ in range(2)
    )
    weight = torch.randn(3, 5, generator=draw, dtype=torch.double, requires_grad=trains)
    assert torch.autograd.gradcheck(down_of_silu_times, (gate, up, weight))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_no_bit_changes(name, precision):
    model = tiny_model(name)
    expected, wanted = learned(copy.deepcopy(model), precision)
    assert lighten_mlps(model) == (2 if name in GATED else 0)
    found, gradients = learned(model, precision)
    assert torch.equal(found, expected)
    assert all(torch.equal(gradients[key], right) for key, right in wanted.items())


def kept(mlp) -> int:
    """Numbers that are kept for the backward, of storages that are no weights."""
    sizes: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in mlp.parameters()}

    def note(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = mlp(torch.randn(10, mlp.gate_proj.in_features, requires_grad=True))
    del out
    return sum(sizes.values())


def test_half_as_much_is_kept():
    mlp = tiny_model("llama").model.layers[0].mlp
    width, inner = mlp.gate_proj.in_features, mlp.gate_proj.out_features
    assert kept(mlp) == 10 * (width + 4 * inner)
    assert lighten_mlps(mlp) == 1
    assert kept(mlp) == 10 * (width + 2 * inner)
    mlp.down_proj.register_forward_hook(lambda *_: None)
    assert kept(mlp) == 10 * (width + 3 * inner)  # a hook may want to see what goes into the product


class Other(nn.Module):
    """The parts of a gated MLP, put together in another way."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.act_fn = nn.SiLU()

    def forward(self, states):
        return self.down_proj(self.gate_proj(states) * self.act_fn(self.up_proj(states)))


def test_what_computes_something_else_stays_as_it_is():
    other = Other()
    assert lighten_mlps(other) == 0
    assert "forward" not in vars(other)


def test_adapters_are_not_passed_by():
    model = tiny_model("llama")
    lighten_mlps(model)
    mlp, states = model.model.layers[0].mlp, torch.randn(3, 32)
    before = mlp(states)
    mlp.up_proj = nn.Sequential(mlp.up_proj, nn.Softsign())
    assert not torch.equal(mlp(states), before)


class Rounded(nn.Module):
    def forward(self, states):
        return states.to(torch.bfloat16)


def test_parts_of_two_precisions_are_multiplied_in_the_higher():
    mlp, states = tiny_model("llama").model.layers[0].mlp, torch.randn(3, 32)
    lighten_mlps(mlp)
    mlp.gate_proj = nn.Sequential(mlp.gate_proj, Rounded())
    assert torch.equal(mlp(states), type(mlp).forward(mlp, states))


def test_a_loaded_model_keeps_less(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), LoadOptions())
    assert ["forward" in vars(layer.mlp) for layer in model.model.layers] == [True, True]
