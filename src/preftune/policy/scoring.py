"""THE log-prob operation: from hidden states to numbers per completion token, without the [N, V] logits ever in memory."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Logits of one chunk, in elements: 64 MiB in fp32. Larger chunks are no faster and raise the peak.
_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output head of a model: logits = softcap(scale * (hidden W^T + bias)), softcap(z) = cap * tanh(z / cap)."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None


class HeadScores(NamedTuple):
    """Per token; the last three are None unless they were asked for."""

    logp: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None
    target_logit: Float[Tensor, " N"] | None
    log_normaliser: Float[Tensor, " N"] | None


def score_tokens(
    hidden: Float[Tensor, "N H"],
    head: Head,
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    logits: bool = False,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> HeadScores:
    """Log-probability of each target under softmax(logits / temperature), natural log, in fp32 (fp64 for fp64 input).

    `entropy` adds the distribution's entropy in nats, `logits` the target's logit (after softcap and temperature) and the
    log-normaliser; all carry gradients. Peak memory is one chunk of logits beside the inputs and, if the head trains, its
    gradient.
    """
    logp, ent, target, normaliser = _TokenScores.apply(
        hidden, head.weight, head.bias, targets, head.scale, head.softcap, temperature, entropy, chunk_elements
    )
    return HeadScores(logp, ent if entropy else None, target if logits else None, normaliser if logits else None)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None, temperature: float):
    """fp32 logits of a chunk, and tanh of the capped ones, which the backward needs."""
    z = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
    if bias is not None:
        z += bias
    z *= scale
    squashed = None
    if softcap is not None:
        squashed = torch.tanh_(z.div_(softcap))
        z = squashed * (softcap / temperature)
    elif temperature != 1.0:
        z /= temperature
    return z, squashed


class _TokenScores(torch.autograd.Function):
    """Forward keeps the log-normaliser of each token; backward computes each chunk's logits again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, hidden, weight, bias, targets, scale, softcap, temperature, want_entropy, chunk_elements
    ):
        # Autocast is off inside a Function's forward for raw matmuls of saved tensors, so the dtype is settled here.
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        compute = dtype or torch.promote_types(hidden.dtype, weight.dtype)
        h, w = hidden.detach().to(compute), weight.detach().to(compute)
        accumulate = torch.promote_types(compute, torch.float32)
        N = len(targets)
        chunk = max(1, chunk_elements // weight.shape[0])
        normaliser, target = (torch.empty(N, dtype=accumulate, device=hidden.device) for _ in range(2))
        entropy = torch.zeros(N if want_entropy else 0, dtype=accumulate, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, N, chunk):
                span = slice(start, start + chunk)
                z, _ = _logits(h[span], w, bias, scale, softcap, temperature)
                target[span] = z.gather(1, targets[span, None]).squeeze(1)
                normaliser[span] = torch.logsumexp(z, 1)
                if want_entropy:
                    p = (z - normaliser[span, None]).exp_()
                    entropy[span] = normaliser[span] - (p * z).sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.settings = (scale, softcap, temperature, want_entropy, chunk, compute)  # type: ignore[attr-defined]
        return target - normaliser, entropy, target, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logp, g_entropy, g_target, g_normaliser):  # type: ignore[override]
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        scale, softcap, temperature, want_entropy, chunk, compute = ctx.settings
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        h, w = hidden.to(compute), weight.to(compute)
        accumulate = normaliser.dtype
        d_hidden = torch.empty_like(hidden) if need_h else None
        d_weight = torch.zeros(weight.shape, dtype=accumulate, device=weight.device) if need_w else None
        d_bias = torch.zeros(bias.shape, dtype=accumulate, device=bias.device) if need_b else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), chunk):
                span = slice(start, start + chunk)
                z, squashed = _logits(h[span], w, bias, scale, softcap, temperature)
                z -= normaliser[span, None]
                p = z.exp() if want_entropy else z.exp_()
                # d logp / d z = onehot - p;  d log-normaliser / d z = p;  d entropy / d z = -p (log p + entropy)
                slope = (g_normaliser - g_logp)[span, None] * p
                if want_entropy:
                    slope -= g_entropy[span, None] * p * (z + entropy[span, None])
                slope.scatter_add_(1, targets[span, None], (g_logp + g_target)[span, None])
                if squashed is not None:
                    slope *= 1 - squashed**2
                slope = slope.mul_(scale / temperature)
                if d_bias is not None:
                    d_bias += slope.sum(0)
                slope = slope.to(compute)
                if d_hidden is not None:
                    d_hidden[span] = slope @ w
                if d_weight is not None:
                    d_weight += slope.t() @ h[span]
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 6,
        )
