"""FlexAttention on packed rows: block masks from the lengths of the segments, without a dense mask.

A query sees two spans of keys in its row: of its own prompt or completion up to itself, and, in a completion,
of its prompt. With a sliding window both begin later.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations import flex_attention as transformers_flex

from preftune.types import Batch, SegmentLengths

FLEX = "preftune_flex"
"""The name of `attend_flex` among the attention functions of transformers."""

BLOCK = 128  # queries, and keys, of a block

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(row, head, query, key), each an index, to whether the query may attend to the key: what FlexAttention
compiles.
"""


def key_spans(
    rows: Sequence[SegmentLengths], width: int, window: int | None = None
) -> Int[np.ndarray, "3 R S"]:
    """For each position of each row: the first key of its own span, which ends at itself, and the first key
    and the end of its prompt's span (both 0 where it sees none). Row-end padding sees itself alone.
    """
    at = np.arange(width)
    spans = np.zeros((3, len(rows), width), dtype=np.int64)
    spans[0] = at
    for own, first, end, row in zip(*spans, rows, strict=True):
        start = 0
        for prompt, *completions in row:
            begin = start + prompt
            own[start:begin] = start
            for length in completions:
                place = slice(begin, begin + length)
                own[place] = begin
                # A key of the prompt at position j is seen from position p while p - j < window.
                unseen = 0 if window is None else at[place] - begin + prompt - window + 1
                first[place], end[place] = start + np.maximum(unseen, 0), start + prompt
                begin += length
            start = begin
        if window is not None:
            np.maximum(own, at - window + 1, out=own)
        gone = first >= end
        first[gone] = end[gone] = 0
    return spans


def mask_rule(spans: Int[Tensor, "3 R S"]) -> MaskRule:
    """`packed_mask`, entry by entry."""
    own, first, end = spans
    # A lambda, because torch counts the arguments of a rule, which a decorator (a type checker's in the tests)
    # would hide.
    return lambda row, head, query, key: (
        ((key >= own[row, query]) & (key <= query)) | ((key >= first[row, query]) & (key < end[row, query]))
    )


def count_pairs(spans: Int[Tensor, "3 R S"]) -> Int[Tensor, "R B B"]:
    """Pairs of a query and a key that it sees, for each block of queries by block of keys."""
    own, first, end = spans[..., None]  # by block of keys
    width = spans.shape[2]
    low = torch.arange(0, width, BLOCK, device=spans.device)
    itself = torch.arange(width, device=spans.device)[:, None]
    seen = (torch.minimum(itself + 1, low + BLOCK) - torch.maximum(own, low)).clamp(min=0)
    seen = seen + (torch.minimum(end, low + BLOCK) - torch.maximum(first, low)).clamp(min=0)
    return pad(seen, (0, 0, 0, -width % BLOCK)).unflatten(1, (-1, BLOCK)).sum(2)


def block_mask(batch: Batch, window: int | None = None) -> BlockMask:
    """`packed_mask` of rows that are padded to whole blocks. FlexAttention leaves out blocks of which no entry
    is true, and evaluates the rule only in blocks of which some are.
    """
    return _block_mask(batch.rows, padded_width(batch), window, batch.input_ids.device)


@lru_cache(maxsize=4)  # the kinds of layers, for a policy and its reference
def _block_mask(
    rows: tuple[SegmentLengths, ...], width: int, window: int | None, device: torch.device
) -> BlockMask:
    with torch.inference_mode(False):  # a later pass may want gradients under the same mask
        host = torch.from_numpy(key_spans(rows, width, window))
        spans = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
        count = count_pairs(spans)[:, None]
        full = count == BLOCK * BLOCK
        return BlockMask.from_kv_blocks(
            *_in_order((count > 0) & ~full),
            *_in_order(full),
            BLOCK_SIZE=BLOCK,
            mask_mod=mask_rule(spans),
            seq_lengths=(width, width),
        )


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row of blocks are true, and all of their indices, the true ones first."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), indices.int().contiguous()


def padded_width(batch: Batch) -> int:
    """The width of the rows in whole blocks: kernels for other widths are slower, and one is compiled for
    fewer of them.
    """
    width = batch.input_ids.shape[1]
    return width + -width % BLOCK


def padded_inputs(batch: Batch, function: str | None) -> tuple[Tensor, Tensor]:
    """Token ids and positions of the batch as the named attention function takes them: in whole blocks for
    FlexAttention.
    """
    more = padded_width(batch) - batch.input_ids.shape[1] if function == FLEX else 0
    if not more:
        return batch.input_ids, batch.position_ids
    return pad(batch.input_ids, (0, more)), pad(batch.position_ids, (0, more))


def attend_flex(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention under a block mask, and only under one: without it, it would see later tokens. Grouped
    queries read keys and values without copies of them.
    """
    if not isinstance(attention_mask, BlockMask):
        raise TypeError(f"FlexAttention wants a block mask, got {type(attention_mask).__name__}")
    kind = query.device.type
    if torch.is_autocast_enabled(
        kind
    ):  # rotary embeddings leave queries and keys in fp32 next to bf16 values
        low = torch.get_autocast_dtype(kind)
        query, key, value = query.to(low), key.to(low), value.to(low)
    if any(others.get(name) is not None for name in ("s_aux", "position_bias")) or others.get("dropout"):
        return transformers_flex.flex_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **others
        )
    out = transformers_flex.compile_friendly_flex_attention(
        query,
        key,
        value,
        training=module.training,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=attention_mask,
        enable_gqa=query.shape[1] != key.shape[1],
        scale=scaling,
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).contiguous(), None


def _capped(limit: float) -> Callable[..., Tensor]:
    return lambda score, row, head, query, key: limit * torch.tanh(score / limit)


AttentionInterface.register(FLEX, attend_flex)
