"""THE log-prob operation: from hidden states to numbers per completion token, without the [N, V] logits ever
in memory.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from preftune.errors import ModelError
from preftune.model.kernels.head import (
    add_low_product,
    logits_product,
    normalizer_and_logit,
    one_pass,
    slope_of_logits,
)
from preftune.model.kernels.products import leaves_half_idle

# Logits of one chunk, in elements: 64 MiB in fp32. On a CPU larger chunks are no faster and raise the peak.
# On a GPU a chunk must pay for reading the head and, if it trains, for adding to its gradient: 512 MiB are
# some 900 tokens of 150,000 words.
_CHUNK_ELEMENTS = 2**24
_CHUNK_ELEMENTS_CUDA = 2**27
# Of what is made next to a kept chunk on a CPU: more would be a part of the peak. Fewer tokens would not pay
# for reading the head.
_WORK_ELEMENTS, _WORK_TOKENS = 2**22, 128


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output head of a model: logits = softcap(scale * (hidden W^T + bias)), softcap(z) = cap * tanh(z /
    cap).
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None


class HeadScores(NamedTuple):
    """Per token, named and meant as in TokenScores; all but logp are None unless they are wanted."""

    logp: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None = None
    target_logit: Float[Tensor, " N"] | None = None
    log_normalizer: Float[Tensor, " N"] | None = None
    kl_from_ref: Float[Tensor, " N"] | None = None
    kl_to_ref: Float[Tensor, " N"] | None = None
    log_collision: Float[Tensor, " N"] | None = None
    ref_logp: Float[Tensor, " N"] | None = None
    ref_entropy_share: Float[Tensor, " N"] | None = None


_FROZEN = {"log_collision", "ref_logp", "ref_entropy_share"}
_DIVERGENCES = {"kl_from_ref", "kl_to_ref"}
_OF_REFERENCE = _DIVERGENCES | {"ref_logp", "ref_entropy_share"}
_OF_TARGETS = {"logp", "target_logit", "log_normalizer"}  # the others take another pass over the logits


def score_tokens(
    hidden: Float[Tensor, "N H"],
    head: Head,
    targets: Int[Tensor, " N"],
    *,
    wanted: frozenset[str] = frozenset(),
    reference: tuple[Float[Tensor, "N _"], Head] | None = None,
    temperature: float = 1.0,
    chunk_elements: int | None = None,
    into_grad: bool = False,
    few_passes: bool | None = None,
) -> HeadScores:
    """Log-probability of each target under softmax(logits / temperature), natural log, in fp32 (fp64 for fp64
    input).

    `wanted` names more of HeadScores, and what is not wanted costs nothing. Logits and log-normalizer are
    those after softcap and temperature. `reference` is the hidden states of another model at the same
    positions and its head; the temperature is also its own. What speaks of the policy carries a gradient to
    its hidden states and head, the collision aside; the reference never gets one. Peak memory is one chunk of
    logits in addition to the inputs and, if the head trains, its gradient; with a reference the chunk is shared by
    the two. With `into_grad` the backward adds the gradient of a head's weight that trains to its `.grad`,
    instead of giving it to autograd, which would hold it until the end if the weight is the embedding's too.
    `few_passes` over the logits, for what needs them at the targets alone, are the way on GPUs; on a CPU
    passes over pieces that stay in its cache are.
    """
    assert wanted <= set(HeadScores._fields), f"no such scores: {sorted(wanted - set(HeadScores._fields))}"
    other = None
    if wanted & _OF_REFERENCE:
        assert reference is not None, f"{sorted(wanted & _OF_REFERENCE)} need a reference"
        ref_hidden, ref_head = reference
        if len(ref_head.weight) != len(head.weight):
            raise ModelError(
                "The vocabulary of the reference is not that of the policy",
                got=f"{len(ref_head.weight)} tokens",
                expected=f"{len(head.weight)}",
                do="Choose a reference with the same tokenizer and size of vocabulary",
            )
        other = _Logits.of(
            ref_hidden, ref_head.weight, ref_head.bias, (ref_head.scale, ref_head.softcap, temperature)
        )
    if chunk_elements is None:
        chunk_elements = _CHUNK_ELEMENTS_CUDA if hidden.is_cuda else _CHUNK_ELEMENTS
    chunk = max(1, chunk_elements // (len(head.weight) * (1 if other is None else 2)))
    if len(targets) <= 2 * chunk and hidden.requires_grad and torch.is_grad_enabled():
        chunk = max(
            1, len(targets)
        )  # as one, which is kept, they cost the memory of two and save the backward a product
    transform = (head.scale, head.softcap, temperature)
    weight, total = head.weight, None
    trains = weight.is_leaf and weight.requires_grad and hidden.requires_grad and torch.is_grad_enabled()
    if into_grad and trains and weight.grad_dtype in (torch.float32, torch.float64):  # sums want fp32
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight, dtype=weight.grad_dtype)
        weight, total = weight.detach(), weight.grad
    few = (hidden.is_cuda if few_passes is None else few_passes) and wanted <= _OF_TARGETS
    return HeadScores(
        *_TokenScores.apply(hidden, weight, head.bias, targets, transform, other, wanted, chunk, total, few)
    )


@dataclass(frozen=True, kw_only=True)
class _Logits:
    """The logits of a model, computed for some positions at a time; nothing here carries a gradient."""

    hidden: Tensor  # [N, H], and the weight, in the dtype of their product
    weight: Tensor
    bias: Tensor | None
    transform: tuple[float, float | None, float]  # scale, softcap, temperature

    @staticmethod
    def of(hidden, weight, bias, transform, dtype: torch.dtype | None = None) -> "_Logits":
        """The product is in the dtype of autocast, which does not reach into an autograd Function by itself."""
        if dtype is None:
            kind = hidden.device.type
            on = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if on else torch.promote_types(hidden.dtype, weight.dtype)
        return _Logits(
            hidden=hidden.detach().to(dtype),
            weight=weight.detach().to(dtype),
            bias=None if bias is None else bias.detach(),
            transform=transform,
        )

    @property
    def accumulate(self) -> torch.dtype:
        return torch.promote_types(self.hidden.dtype, torch.float32)

    def at(self, span: slice) -> tuple[Tensor, Tensor | None]:
        """Logits of a chunk in fp32 or better, and tanh of the capped logits, which the backward needs."""
        scale, softcap, temperature = self.transform
        with torch.autocast(self.hidden.device.type, enabled=False):
            z = logits_product(self.hidden[span], self.weight, self.accumulate)
        if self.bias is not None:
            z += self.bias
        if scale != 1.0:
            z *= scale
        squashed = None
        if softcap is not None:
            squashed = torch.tanh_(z.div_(softcap))
            z = squashed * (softcap / temperature)
        elif temperature != 1.0:
            z /= temperature
        return z, squashed


@torch.no_grad()
def head_logits(hidden: Float[Tensor, "N H"], head: Head) -> Float[Tensor, "N V"]:
    """All logits of a few positions, in fp32 (fp64 for fp64 input), as score_tokens computes them; without a
    gradient.
    """
    return _Logits.of(hidden, head.weight, head.bias, (head.scale, head.softcap, 1.0)).at(slice(None))[0]


def _spans(count: int, chunk: int) -> list[slice]:
    """Chunks of like size, at most `chunk` each."""
    parts = math.ceil(count / chunk)
    edges = [count * part // parts for part in range(parts + 1)] if parts else []
    return [slice(start, end) for start, end in pairwise(edges)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, with little memory in addition to the total."""
    # What use_fast_products puts in the place of PyTorch's product gives a product and adds it to nothing.
    if left.dtype == total.dtype and (total.is_cuda or not leaves_half_idle()):
        torch.addmm(total, left, right, out=total)
        return
    if add_low_product(total, left, right):
        return
    rows = max(1, _WORK_ELEMENTS // total.shape[1])
    for part, some in zip(total.split(rows), left.split(rows), strict=True):
        part += some @ right


def _log_normalizer(z: Tensor) -> Tensor:
    """logsumexp of each row of a chunk that is kept, on a CPU without a copy of all of it."""
    return torch.cat([torch.logsumexp(part, 1) for part in z.split(_work_tokens(z))])


def _work_tokens(z: Tensor) -> int:
    """Rows of a kept chunk that are worked on at once."""
    return len(z) if z.is_cuda else max(_WORK_TOKENS, _WORK_ELEMENTS // z.shape[1])


def _sums(log_p: Tensor, log_q: Tensor | None, targets: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """The requested scores of a chunk, from the log-probabilities [n, V] of the policy and of the reference."""
    found = {}
    if wanted & {"entropy", "log_collision", "kl_to_ref"}:
        p = log_p.exp()
        if "entropy" in wanted:
            found["entropy"] = -(p * log_p).sum(1)
        if "log_collision" in wanted:
            found["log_collision"] = p.square().sum(1).log()
        if log_q is not None and "kl_to_ref" in wanted:
            found["kl_to_ref"] = p.mul_(log_p - log_q).sum(1)
    if log_q is not None:
        if "ref_logp" in wanted:
            found["ref_logp"] = log_q.gather(1, targets[:, None]).squeeze(1)
        if "kl_from_ref" in wanted:
            found["kl_from_ref"] = (log_q.exp() * (log_q - log_p)).sum(1)
        if "ref_entropy_share" in wanted:
            found["ref_entropy_share"] = -(log_q.exp() * log_q).sum(1) / math.log(log_q.shape[1])
    return found


def _slope(
    log_p: Tensor,
    log_q: Tensor | None,
    on_all: Tensor,
    terms: dict[str, Tensor],
    kept: dict[str, Tensor],
    in_place: bool,
) -> Tensor:
    """The gradient of a chunk's logits except for what falls on the targets, from log-probabilities [n, V].

    d logp / d z = onehot - p;  d log-normalizer / d z = p;  d entropy / d z = -p (log p + entropy);
    d KL(ref || pi) / d z = p - q;  d KL(pi || ref) / d z = p (log p - log q - KL)
    """
    alone = "entropy" not in kept and log_q is None
    p = log_p.exp_() if alone and in_place else log_p.exp()  # a kept chunk serves a second backward too
    slope = p.mul_(on_all[:, None]) if alone else on_all[:, None] * p
    if "entropy" in kept:
        slope -= terms["entropy"][:, None] * p * (log_p + kept["entropy"][:, None])
    if log_q is not None:
        if "kl_to_ref" in kept:
            slope += terms["kl_to_ref"][:, None] * p * (log_p - log_q - kept["kl_to_ref"][:, None])
        if "kl_from_ref" in terms:
            slope += terms["kl_from_ref"][:, None] * (p - log_q.exp_())
    return slope


class _TokenScores(torch.autograd.Function):
    """Forward keeps a few numbers per token; backward computes each chunk's logits again, unless there is one
    chunk only.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden,
        weight,
        bias,
        targets,
        transform,
        reference: _Logits | None,
        wanted: frozenset[str],
        chunk: int,
        total: Tensor | None,
        few: bool,
    ):
        policy = _Logits.of(hidden, weight, bias, transform)
        kept = (
            {"log_normalizer", "target_logit"}
            | (wanted - {"logp"})
            | (set() if reference is None else {"ref_normalizer"})
        )
        out = {
            name: torch.empty(len(targets), dtype=policy.accumulate, device=hidden.device) for name in kept
        }
        spans, only = _spans(len(targets), chunk), None
        keeps = len(spans) == 1 and any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        for span in spans:
            z, squashed = policy.at(span)
            if few:
                reduced = one_pass(normalizer_and_logit, z.device)(z, targets[span])
                out["log_normalizer"][span], out["target_logit"][span] = reduced  # type: ignore[misc]
                only = (z, squashed) if keeps else None
                continue
            out["target_logit"][span] = z.gather(1, targets[span, None]).squeeze(1)
            out["log_normalizer"][span] = _log_normalizer(z) if keeps else torch.logsumexp(z, 1)
            if keeps:
                only = (z, squashed)
            if wanted <= _OF_TARGETS and only is None:
                continue
            z -= out["log_normalizer"][span, None]
            if wanted <= _OF_TARGETS:
                continue
            log_q = None
            if reference is not None:
                log_q, _ = reference.at(span)
                out["ref_normalizer"][span] = torch.logsumexp(log_q, 1)
                log_q -= out["ref_normalizer"][span, None]
            for name, values in _sums(z, log_q, targets[span], wanted).items():
                out[name][span] = values
        both = reference is not None and bool(wanted & _DIVERGENCES)  # whether backward needs the reference
        again = [
            out["log_normalizer"],
            out.get("entropy"),
            out.get("kl_to_ref"),
            out["ref_normalizer"] if both else None,
        ]
        ctx.save_for_backward(hidden, weight, bias, targets, *again, *(only or (None, None)))  # type: ignore[arg-type]
        ctx.settings = (transform, reference if both else None, chunk, policy.hidden.dtype, total, few)  # type: ignore[attr-defined]
        out["logp"] = out["target_logit"] - out["log_normalizer"]
        ctx.mark_non_differentiable(*(out[name] for name in _FROZEN & wanted))
        return tuple(out[name] if name in wanted | {"logp"} else None for name in HeadScores._fields)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # type: ignore[override]
        hidden, weight, bias, targets, normalizer, entropy, kl_to_ref, ref_normalizer, *only = (
            ctx.saved_tensors
        )
        transform, reference, chunk, dtype, total, few = ctx.settings
        policy = _Logits.of(hidden, weight, bias, transform, dtype)
        g = {name: one for name, one in zip(HeadScores._fields, gradients, strict=True) if one is not None}
        on_target = g["logp"] + g.get("target_logit", 0.0)
        on_all = g.get("log_normalizer", 0.0) - g["logp"]
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_h else None
        d_weight = torch.zeros_like(weight, dtype=policy.accumulate) if need_w else total
        if only[0] is not None:
            chunk = _work_tokens(only[0])  # the logits are kept whole, what is made of them is not
        d_bias = torch.zeros(bias.shape, dtype=policy.accumulate, device=bias.device) if need_b else None
        for span in _spans(len(targets), chunk):
            z, squashed = (
                policy.at(span)
                if only[0] is None
                else (only[0][span], None if only[1] is None else only[1][span])
            )
            if few:
                kernel = one_pass(slope_of_logits, hidden.device)
                slope: Any = kernel(z, normalizer[span], on_all[span], on_target[span], targets[span])
            else:
                log_p = z if only[0] is not None else z.sub_(normalizer[span, None])
                log_q = None if reference is None else reference.at(span)[0].sub_(ref_normalizer[span, None])
                terms = {name: one[span] for name, one in g.items()}
                kept = {"entropy": entropy, "kl_to_ref": kl_to_ref}
                kept = {name: one[span] for name, one in kept.items() if one is not None}
                slope = _slope(log_p, log_q, on_all[span], terms, kept, only[0] is None)
                slope.scatter_add_(1, targets[span, None], on_target[span, None])
            if squashed is not None:
                slope *= 1 - squashed**2
            if transform[0] != transform[2]:
                slope *= transform[0] / transform[2]
            if d_bias is not None:
                d_bias += slope.sum(0)
            with torch.autocast(hidden.device.type, enabled=False):
                slope = slope.to(dtype)
                if d_hidden is not None:
                    d_hidden[span] = slope @ policy.weight
                if d_weight is not None:
                    _add_product(d_weight, slope.t(), policy.hidden[span])
            del slope  # or it would be held next to the next one's parts
        return (
            d_hidden,
            d_weight.to(weight.dtype) if need_w and d_weight is not None else None,
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 7,
        )
