"""Root-mean-square norms on processors, in fewer passes over memory than transformers' modules take."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
    for module in model.modules():
        eps = vars(module).get("variance_epsilon", vars(module).get("eps"))
        if "RMSNorm" not in type(module).__name__ or not isinstance(eps, float) or "forward" in vars(module):
            continue
        parameters = dict(module.named_parameters())
        if list(parameters) == ["weight"] and _is_same(module, parameters["weight"], eps):
            module.forward = partial(_forward, module, type(module).forward, eps)
            count += 1
    return count


def _is_same(module: nn.Module, weight: Tensor, eps: float) -> bool:
    if weight.ndim != 1 or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    plain = torch.linspace(-1, 1, 3 * len(weight)).reshape(3, len(weight))
    try:
        return all(_same_at(module, size * plain, weight, eps) for size in _PROBES)
    except Exception:  # a norm of another kind, which may want other inputs or refuse these in any way
        return False


def _same_at(module: nn.Module, probe: Tensor, weight: Tensor, eps: float) -> bool:
    """Whether values and gradients, of the probe and of the weight, are the same up to rounding."""
    found = []
    for forward in (module, lambda states: rms_norm(states, weight, eps)):
        with torch.enable_grad():
            states = probe.clone().requires_grad_()
            value = forward(states)
            wanted = [states, weight] if weight.requires_grad else [states]
            into = torch.arange(value.numel()).cos().view_as(value)
            gradients = torch.autograd.grad(value, wanted, into)
        found.append([value.detach(), *gradients])
    return all(
        mine.dtype == torch.float32
        and torch.allclose(mine, usual, rtol=0, atol=_APART * float(usual.abs().max()))
        for usual, mine in zip(*found, strict=True)
    )


def _forward(module: Any, usual: Any, eps: float, states: Tensor, *others: Any, **named: Any) -> Tensor:
    if any(value is not None for value in (*others, *named.values())):  # such as a gate
        return usual(module, states, *others, **named)
    if states.dtype == module.weight.dtype == torch.float32 and states.device.type == "cpu":
        return rms_norm(states, module.weight, eps)
    return usual(module, states)
