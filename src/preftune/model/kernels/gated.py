"""Gated MLPs that keep half as much for the backward as transformers' modules, and change no bit."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from preftune.model.kernels.likeness import no_further

_PARTS = ["gate_proj", "up_proj", "down_proj", "act_fn"]
_PROBE = 4  # rows
_PROBE_SIZES = (1.0, 100.0)  # of inputs, so that clamped products are seen
_APART = 1e-4  # of the largest gradient, in fp32
_KEEPS_PRODUCT = ContextVar("keeps_product", default=False)


class _SiluTimes(torch.autograd.Function):
    """silu(gate) up; silu(gate) is computed again in the backward and not kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (gate, up) = gradients, ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """gate sigmoid(gate) up, element by element, of two tensors of one shape and precision; differentiable
    once.
    """
    return _SiluTimes.apply(gate, up)  # type: ignore[no-untyped-call]


class _DownOfSiluTimes(torch.autograd.Function):
    """W (silu(gate) up); of the MLP's inner width only gate and up are kept, the rest is computed again
    element by element.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (gradient,), (gate, up, weight) = gradients, ctx.saved_tensors
        inner, flat = silu(gate), gradient.flatten(0, -2)
        of_weight = flat.t() @ (inner * up).flatten(0, -2) if ctx.needs_input_grad[2] else None
        of_product = (flat @ weight).view_as(gate)
        of_up = inner.mul_(of_product)
        return torch.ops.aten.silu_backward(of_product.mul_(up), gate), of_up, of_weight


def down_of_silu_times(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """weight (silu(gate) up) of two tensors [.., I] and a matrix [H, I] of one precision; differentiable
    once.
    """
    return _DownOfSiluTimes.apply(gate, up, weight)  # type: ignore[no-untyped-call]


@contextmanager
def keeping_products() -> Iterator[None]:
    """Within, MLPs keep what goes into their last product, as layers do that are computed a second time.

    They hold it for one layer at a time, and the second time stop where all is there that the backward wants:
    before that product, a quarter of a layer's operations, if it is autograd that keeps what goes into it.
    """
    token = _KEEPS_PRODUCT.set(True)
    try:
        yield
    finally:
        _KEEPS_PRODUCT.reset(token)


def lighten_mlps(model: nn.Module) -> int:
    """Let the MLPs of a model that compute down(silu(gate(x)) up(x)) keep less for their backward; how many
    do.

    What an MLP computes is not taken from the names of its parts: the first of its class, with its settings,
    must give the same bits on a probe in fp32, and the same gradients. A module that cannot be probed stays as it is.
    """
    count, same = 0, dict[tuple[object, ...], bool]()
    for module in model.modules():
        if [name for name, _ in module.named_children()] != _PARTS or "forward" in vars(module):
            continue
        kind = type(module), type(module.act_fn), *_settings(module)
        if kind not in same:
            same[kind] = _is_same(module)
        if same[kind]:
            module.forward = partial(_forward, module)
            count += 1
    return count


def _settings(module: nn.Module) -> list[tuple[str, object]]:
    """Numbers and words that may change what a module computes, such as a limit of its products."""
    plain = (bool, int, float, str, type(None))
    return sorted(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, plain) and not name.startswith("_") and name not in ("training", "layer_idx")
    )


def _is_same(module: Any) -> bool:
    """In fp32 the same bits, and gradients that differ by rounding; in 16 bits as near to fp32 as the module is."""
    gate, up, down = (getattr(module, name) for name in _PARTS[:3])
    if any(type(part) is not nn.Linear or type(part.weight) is not nn.Parameter for part in (gate, up, down)):
        return False
    dtype = gate.weight.dtype
    exact = module if dtype in (torch.float32, torch.float64) else copy.deepcopy(module).float()
    plain = torch.linspace(
        -1, 1, _PROBE * gate.in_features, dtype=exact.gate_proj.weight.dtype, device=gate.weight.device
    ).reshape(_PROBE, gate.in_features)
    try:
        for size in _PROBE_SIZES:
            truth, same = _computed(exact, size * plain)
            if not torch.equal(same[0], truth[0]) or not all(map(_is_near, same, truth)):
                return False
            if exact is not module:
                usual, found = _computed(module, size * plain.to(dtype))
                if no_further(found, usual, truth):
                    return False
    except Exception:  # a module of another kind, which may want other inputs or refuse these in any way
        return False
    return True


def _computed(module: Any, probe: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and gradients of the probe and of weights: as the module computes them, and as `_forward` does."""
    found = []
    for forward in (module, partial(_forward, module)):
        with torch.enable_grad():
            states = probe.clone().requires_grad_()
            value = forward(states)
            weights = [
                weight for weight in (module.up_proj.weight, module.down_proj.weight) if weight.requires_grad
            ]
            gradients = torch.autograd.grad(value, [states, *weights], torch.ones_like(value))
        found.append([value.detach(), *gradients])
    return found[0], found[1]


def _is_near(found: Tensor, truth: Tensor) -> bool:
    return torch.allclose(found, truth, rtol=0, atol=_APART * float(truth.abs().max()))


def _forward(module: Any, states: Tensor) -> Tensor:
    gate, up, down = module.gate_proj(states), module.up_proj(states), module.down_proj
    if gate.dtype != up.dtype:
        return down(module.act_fn(gate) * up)
    may_replace = (
        _is_bare(down) and down.weight.dtype == gate.dtype and not torch.is_autocast_enabled(gate.device.type)
    )
    if may_replace and not _KEEPS_PRODUCT.get():
        return down_of_silu_times(gate, up, down.weight)
    return down(silu_times(gate, up))


def _is_bare(module: nn.Module) -> bool:
    """Whether a call of the module is a product with its weight and nothing more: no adapter, no bias,
    nothing hooked onto it.
    """
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return type(module) is nn.Linear and module.bias is None and "forward" not in vars(module) and not hooked
