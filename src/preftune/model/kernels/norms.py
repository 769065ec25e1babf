"""Root-mean-square norms on processors, in fewer passes over memory than transformers' modules take."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import rms_norm as fused_rms_norm

from preftune.model.kernels.likeness import no_further

_PROBES = (1.0, 1e-3)  # sizes of inputs, so that the small number under the root is seen too
_APART = 1e-5  # of the largest output


class _RootMeanSquareNorm(torch.autograd.Function):
    """weight x / sqrt(mean(x^2) + eps) over the last dimension, of fp32 on a CPU; only x and the roots are
    kept.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, width = states.reshape(-1, states.shape[-1]), states.shape[-1]
        scale = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(rows, weight, scale)
        return (rows * scale).mul_(weight).view(states.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        rows, weight, scale = ctx.saved_tensors
        gradient = gradients[0].reshape(rows.shape)
        # The backward of a layer norm with mean 0 differs in one term only: it subtracts the mean of
        # gradient * weight.
        into_rows, into_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient,
            rows,
            [rows.shape[-1]],
            torch.zeros_like(scale),
            scale,
            weight,
            None,
            [True, ctx.needs_input_grad[1], False],
        )
        with torch.autocast("cpu", enabled=False):
            taken = torch.mv(gradient, weight).div_(rows.shape[-1])[:, None]
        return into_rows.addcmul_(scale, taken).view(gradients[0].shape), into_weight, None


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean(x^2) + eps) over the last dimension D of states [..., D], fp32 on a CPU;
    differentiable once.
    """
    return _RootMeanSquareNorm.apply(states, weight, eps)  # type: ignore[no-untyped-call]


def quicken_norms(model: nn.Module) -> int:
    """Let the root-mean-square norms of a model compute in fewer passes where that is known to be the same;
    how many do.

    What a norm computes is not taken from its name: it must give the same values and gradients on a probe, so
    that others (Gemma's, which adds 1 to its weight) and those that cannot be probed stay as they are. In
    another precision and on other devices a norm computes as it did.
    """
    count = 0
    for module, weight, eps in _candidates(model):
        if "forward" in vars(module) or weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        if _is_same(module, weight, lambda states, own, eps=eps: rms_norm(states, own, eps)):
            module.forward = partial(_forward, module, type(module).forward, eps)
            count += 1
    return count


def fuse_norms(model: nn.Module) -> int:
    """Let the root-mean-square norms of a model on a GPU use PyTorch's fused kernel, one pass over memory in the
    place of eight, where the same probe finds the same; how many do. In 16 bits it rounds once, and must be no
    further from fp32 than three times the module.
    """
    count = 0
    for module, weight, eps in _candidates(model):
        fused = partial(_fused, eps)
        if _is_same(module, weight, fused):
            module.forward = partial(_forward_fused, module, type(module).forward, fused)
            count += 1
    return count


def _fused(eps: float, states: Tensor, weight: Tensor) -> Tensor:
    return fused_rms_norm(states, weight.shape, weight, eps)


def _candidates(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor, float]]:
    """Norms by their name and parts, with their weight and the small number under the root."""
    for module in model.modules():
        eps = vars(module).get("variance_epsilon", vars(module).get("eps"))
        if "RMSNorm" not in type(module).__name__ or not isinstance(eps, float):
            continue
        parameters = dict(module.named_parameters())
        if list(parameters) == ["weight"] and parameters["weight"].ndim == 1:
            yield module, parameters["weight"], eps


def _is_same(module: nn.Module, weight: Tensor, replacement: Any) -> bool:
    exact = weight if weight.dtype == torch.float64 else weight.detach().float()
    plain = torch.linspace(-1, 1, 3 * len(weight), device=weight.device, dtype=exact.dtype).view(
        3, len(weight)
    )
    usual = partial(_as_its_class, module)
    try:
        for size in _PROBES:
            truth, found = (_computed(one, size * plain, exact) for one in (usual, replacement))
            if not all(map(_is_near, found, truth)):
                return False
            if weight.dtype != exact.dtype:
                narrow = (size * plain).to(weight.dtype)
                low, usual_low = (_computed(one, narrow, weight) for one in (replacement, usual))
                if no_further(low, usual_low, truth):
                    return False
    except Exception:  # a norm of another kind, which may want other inputs or refuse these in any way
        return False
    return True


def _as_its_class(module: nn.Module, states: Tensor, weight: Tensor) -> Tensor:
    """What its class computes, with this weight."""
    bare = copy.copy(module)
    vars(bare).pop("forward", None)
    return functional_call(bare, {"weight": weight}, (states,))


def _computed(norm: Any, probe: Tensor, weight: Tensor) -> list[Tensor]:
    """Values, and gradients of the probe and of the weight."""
    with torch.enable_grad():
        states, own = probe.clone().requires_grad_(), weight.detach().clone().requires_grad_()
        value = norm(states, own)
        into = torch.arange(value.numel(), device=value.device).cos().view_as(value).to(value.dtype)
        return [value.detach(), *torch.autograd.grad(value, [states, own], into)]


def _is_near(found: Tensor, truth: Tensor) -> bool:
    return found.dtype == truth.dtype and torch.allclose(
        found, truth, rtol=0, atol=_APART * float(truth.abs().max())
    )


def _forward_fused(module: Any, usual: Any, fused: Any, states: Tensor, *others: Any, **named: Any) -> Tensor:
    gated = any(value is not None for value in (*others, *named.values()))
    if gated or states.dtype != module.weight.dtype:
        return usual(module, states, *others, **named)
    return fused(states, module.weight)


def _forward(module: Any, usual: Any, eps: float, states: Tensor, *others: Any, **named: Any) -> Tensor:
    if any(value is not None for value in (*others, *named.values())):  # such as a gate
        return usual(module, states, *others, **named)
    if states.dtype == module.weight.dtype == torch.float32 and states.device.type == "cpu":
        return rms_norm(states, module.weight, eps)
    return usual(module, states)
