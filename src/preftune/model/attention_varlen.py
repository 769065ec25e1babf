"""Attention of a flat row in one call: FlashAttention for sequences of varying length (torch's `varlen_attn`).

Queries lie in the order of the row. Keys are gathered: a completion's are those of its prompt and its own, so
that each sequence of queries is the end of its sequence of keys. A prompt and its first completion, which
follows it in the row, are one causal sequence.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from preftune.model.attention_segments import attend, causal
from preftune.types import SegmentLengths

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

VARLEN = "preftune_varlen"
"""The name of `attend_varlen` among the attention functions of transformers."""

States = tuple[Float[Tensor, "T H D"], Float[Tensor, "K G D"], Float[Tensor, "K G D"]]
"""Queries, keys and values."""

_LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """S - 1 sequences of queries and of the keys that these see. Sequence i has queries [query_starts[i],
    query_starts[i + 1]) and gathered keys [key_starts[i], key_starts[i + 1]).
    """

    query_starts: Int[Tensor, " S"]  # int32, as kernels want it
    key_starts: Int[Tensor, " S"]
    most_queries: int
    most_keys: int
    keys: Int[Tensor, " K"] | None  # position in the row of each gathered key; None: every position once
    bounds: tuple[tuple[int, int, int, int], ...]  # of each sequence: queries from, to, keys from, to


def key_positions(segments: SegmentLengths) -> tuple[list[int], list[list[int]]]:
    """Lengths of the sequences of queries, and for each the positions in the row of its keys."""
    lengths: list[int] = []
    keys: list[list[int]] = []
    start = 0
    for prompt, *completions in segments:
        first = prompt + (completions[0] if completions else 0)
        lengths.append(first)
        keys.append([*range(start, start + first)])
        at = start + first
        for own in completions[1:]:
            lengths.append(own)
            keys.append([*range(start, start + prompt), *range(at, at + own)])
            at += own
        start = at
    return lengths, keys


@lru_cache(maxsize=4)  # the layers of a policy, of its reference, and of what is computed again
def sequences(segments: SegmentLengths, device: torch.device) -> Sequences:
    """The sequences of a flat row; computed once for all layers of a batch. Completions without positions
    must be left out.
    """
    lengths, keys = key_positions(segments)
    query_starts = [0, *accumulate(lengths)]
    key_starts = [0, *accumulate(map(len, keys))]
    gathered = [position for one in keys for position in one]
    bounds = tuple((*q, *k) for q, k in zip(pairwise(query_starts), pairwise(key_starts), strict=True))
    with torch.inference_mode(False):  # a later pass may want gradients through the same indices
        return Sequences(
            query_starts=_sent(query_starts, torch.int32, device),
            key_starts=_sent(key_starts, torch.int32, device),
            most_queries=max(lengths),
            most_keys=max(map(len, keys)),
            keys=_sent(gathered, torch.int64, device) if len(gathered) > query_starts[-1] else None,
            bounds=bounds,
        )


def _sent(numbers: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    made = torch.tensor(numbers, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


class _Gather(torch.autograd.Function):
    """states[keys]. Gradients of a prompt's keys are summed over its completions in fp32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.length = len(states)
        return states.index_select(0, keys)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keys,) = ctx.saved_tensors
        exact = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros(ctx.length, *gradient.shape[1:], dtype=exact)
        return total.index_add_(0, keys, gradient.to(exact)).to(gradient.dtype), None


def attend_varlen(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`attend` for a flat row by one kernel. In fp32, which the kernel does not compute, and on other devices
    than CUDA, the same sequences are computed one by one.
    """
    segments: SegmentLengths | None = options.get("preftune_segments")
    capped = options.get("softcap") is not None or options.get("s_aux") is not None
    if segments is None or capped:  # what `attend` computes, or refuses
        return attend(module, query, key, value, attention_mask, **options)
    assert attention_mask is not None, "a flat row comes with its window"
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # rotary embeddings leave queries and keys in fp32
        low = torch.get_autocast_dtype(kind)
        query, key, value = query.to(low), key.to(low), value.to(low)
    plan = sequences(segments, query.device)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    if plan.keys is not None:
        keys, values = _Gather.apply(keys, plan.keys), _Gather.apply(values, plan.keys)
    compute = kernel if kind == "cuda" and query.dtype in _LOW else one_by_one
    with torch.autocast(kind, enabled=False):
        out = compute((queries, keys, values), plan, int(attention_mask), options.get("scaling"))
    return out[None], None


def kernel(states: States, plan: Sequences, window: int, scaling: float | None) -> Float[Tensor, "T H D"]:
    """One kernel for all sequences; a window counts the query itself, that of the kernel does not."""
    query, key, _ = states
    return varlen_attn(  # type: ignore[return-value]
        *states,
        plan.query_starts,
        plan.key_starts,
        plan.most_queries,
        plan.most_keys,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def one_by_one(states: States, plan: Sequences, window: int, scaling: float | None) -> Float[Tensor, "T H D"]:
    """What `kernel` computes, from the same indices, by scaled dot products of one sequence after another."""
    query, key, value = states
    out = []
    for from_query, to_query, from_key, to_key in plan.bounds:
        queries = query[from_query:to_query].transpose(0, 1)[None]
        keys, values = (part[from_key:to_key].transpose(0, 1)[None] for part in (key, value))
        out.append(causal(queries, keys, values, window, scaling)[0].transpose(0, 1))
    return torch.cat(out)


def unavailable(device: torch.device, is_low: bool) -> str:
    """ "" if the kernel may run on this device; else why not."""
    if device.type != "cuda":
        return f"its kernel needs a CUDA device, not {device.type}"
    if not is_low:
        return "its kernel computes in 16 bits only (--precision bf16)"
    return missing_parts(varlen_attn)


def missing_parts(function: Any) -> str:
    """ "" if torch's function takes windows and grouped queries; else the torch that has them."""
    if function is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    lacking = {"window_size", "enable_gqa", "scale"} - inspect.signature(function).parameters.keys()
    if lacking:
        return f"torch {torch.__version__} has varlen_attn without {', '.join(sorted(lacking))}"
    return ""


AttentionInterface.register(VARLEN, attend_varlen)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
