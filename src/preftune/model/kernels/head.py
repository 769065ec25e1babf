"""Passes over the logits of an output head, as few as GPUs need: they are the largest tensors of a step."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_LOW = (torch.bfloat16, torch.float16)


def normalizer_and_logit(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp of each row of logits [n, V], and the logit of its target: one pass where it is compiled."""
    return torch.logsumexp(z, 1), z.gather(1, targets[:, None]).squeeze(1)


def slope_of_logits(
    z: Tensor, normalizer: Tensor, on_all: Tensor, on_target: Tensor, targets: Tensor
) -> Tensor:
    """on_all softmax(z) + on_target onehot(targets), row by row: the gradient of a sum of log-probabilities and
    log-normalizers with respect to logits; one pass where it is compiled.
    """
    p = (z - normalizer[:, None]).exp() * on_all[:, None]
    is_target = torch.arange(z.shape[1], device=z.device) == targets[:, None]
    return p + on_target[:, None].where(is_target, 0.0)


@cache
def one_pass(function: Callable[..., object], device: torch.device) -> Callable[..., object]:
    """The function, on a GPU compiled into few kernels where that works and gives the same numbers."""
    if device.type != "cuda":
        return function
    compiled = torch.compile(function, dynamic=True)
    try:
        for rows in (3, 5):
            given = _probe(function, rows, device)
            pairs = zip(_tensors(compiled(*given)), _tensors(function(*given)), strict=True)
            if not all(torch.allclose(found, plain, rtol=1e-5, atol=1e-6) for found, plain in pairs):
                return function
    except Exception:  # a compiler for kernels runs here, which can fail in any way
        return function
    return compiled


def _probe(function: Callable[..., object], rows: int, device: torch.device) -> tuple[Tensor, ...]:
    z = torch.linspace(-4.0, 4.0, rows * 700, device=device).view(rows, 700).sin()
    targets = torch.arange(rows, device=device) * 7
    if function is normalizer_and_logit:
        return z, targets
    return z, torch.logsumexp(z, 1), z[:, 0], z[:, 1], targets


def _tensors(found: object) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)  # type: ignore[return-value]


def logits_product(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """hidden [n, H] @ weight [V, H]^T in this dtype. On a GPU 16-bit products are written in fp32, as they are
    summed, and not rounded between: bf16 holds logits of 16 and more to 0.125.
    """
    if hidden.dtype in _LOW and writes_fp32(hidden.device):
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return (hidden @ weight.t()).to(dtype)


def add_low_product(total: Tensor, left: Tensor, right: Tensor) -> bool:
    """total += left @ right of 16-bit matrices into fp32, in one product; False where there is none for it."""
    if left.dtype not in _LOW or total.dtype != torch.float32 or not writes_fp32(left.device):
        return False
    torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)
    return True


@cache
def writes_fp32(device: torch.device) -> bool:
    """Whether products of 16-bit matrices on this device can be written, and added, in fp32."""
    if device.type != "cuda":
        return False
    left = torch.linspace(-1, 1, 64 * 32, device=device).view(64, 32).bfloat16()
    right = left.t().contiguous()
    exact = left.float() @ right.float()
    try:
        found, total = torch.mm(left, right, out_dtype=torch.float32), exact.clone()
        torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(found, exact, atol=1e-3) and torch.allclose(total, 2 * exact, atol=1e-3)
