"""Attention of a flat row, segment by segment: nothing is masked away, and no score is computed between
sequences.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from preftune.model.attention_blocks import FLEX
from preftune.model.attention_masks import layer_types, set_attention
from preftune.types import Batch, SegmentLengths

T = TypeVar("T")

SEGMENTS = "preftune_segments"
"""The name of `attend` among the attention functions of transformers."""


def segment_lengths(batch: Batch) -> SegmentLengths:
    """The segments of a batch that is one row without padding, completions without positions left out."""
    (row,) = batch.rows
    return tuple(tuple(length for length in segment if length) for segment in row)


def window_inputs(config: Any) -> Tensor | dict[str, Tensor]:
    """The `attention_mask` argument: for each kind of layer its window, 0 for none, in the shape of a
    finished mask.
    """
    kinds = layer_types(config)
    windows = {
        kind: torch.full((1, 1, 1, 1), config.sliding_window if kind == "sliding_attention" else 0)
        for kind in kinds
    }
    named = getattr(config, "layer_types", None)
    return windows if named and len(kinds) > 1 else next(iter(windows.values()))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    preftune_segments: SegmentLengths | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T scaling) v of [1, heads, T, D], each prompt over itself and each completion over its
    prompt and itself.

    The keys and values of a prompt are computed once and read by all its completions.
    """
    if preftune_segments is None:
        if softcap is not None or s_aux is not None:  # sdpa would leave them out silently
            raise NotImplementedError("soft-capped scores or attention sinks")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, s_aux=s_aux, **others
        )
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("soft-capped scores or attention sinks")
    assert attention_mask is not None, "a flat row comes with its window"
    window, dtype = int(attention_mask), query.dtype
    if query.device.type == "cpu":  # its backward in bf16 takes three times as long as in fp32
        query, key, value = (
            states.to(torch.promote_types(dtype, torch.float32)) for states in (query, key, value)
        )
    with torch.autocast(
        query.device.type, enabled=query.device.type != "cpu" and torch.is_autocast_enabled(query.device.type)
    ):
        out = _by_segment(query, key, value, preftune_segments, window, scaling)
    return torch.cat([part.transpose(1, 2) for part in out], dim=1).to(dtype), None


def _by_segment(
    query: Tensor, key: Tensor, value: Tensor, segments: SegmentLengths, window: int, scaling: float | None
) -> list[Tensor]:
    # Split once: the gradient of a slice would be as long as the row.
    parts = zip(
        *(states.split([*chain.from_iterable(segments)], dim=2) for states in (query, key, value)),
        strict=True,
    )
    out = []
    for lengths in segments:
        queries, prompt_key, prompt_value = next(parts)
        out.append(causal(queries, prompt_key, prompt_value, window, scaling))
        for _ in lengths[1:]:
            queries, own_key, own_value = next(parts)
            seen = torch.cat([prompt_key, own_key], dim=2), torch.cat([prompt_value, own_value], dim=2)
            out.append(causal(queries, *seen, window, scaling))
    return out


def causal(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float | None) -> Tensor:
    """The queries are the last positions of the keys."""
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if queries < keys or 0 < window < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        if window:
            mask = mask.triu(keys - queries - window + 1)
    repeats = query.shape[1] // key.shape[1]
    grouped = repeats > 1 and (
        query.device.type == "cpu" or mask is None
    )  # other devices' kernels take no mask then
    if repeats > 1 and not grouped:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


AttentionInterface.register(SEGMENTS, attend)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)


def plain_attention(config: Any) -> str:
    """Scaled dot products, by segments where rows are flat; what these cannot express (soft-capped scores) is
    eager.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else SEGMENTS


def with_fitting_attention(make: Callable[[str], T], model_class: Any, config: Any) -> T:
    """`make(name)` with the attention function that suits the class: `plain_attention`, or a special one where
    it does not look functions up by name.
    """
    name = plain_attention(config)
    by_name = model_class is None or hasattr(sys.modules[model_class.__module__], "ALL_ATTENTION_FUNCTIONS")
    if name == SEGMENTS and not by_name and not getattr(model_class, "_supports_attention_backend", True):
        name = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    try:
        return make(name)
    except KeyError as error:  # one of its parts has a separate table
        if name not in str(error):
            raise
        return make("eager")


_FEW_TOKENS = 12
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit


@torch.no_grad()
def settle_attention(model: PreTrainedModel) -> None:
    """Give the model the attention that transformers would have chosen, where `attend` computes something else.

    Attention sinks and masks that a layer makes for itself are of this kind. The logits of a few tokens are
    compared.
    """
    name = model.config.get_text_config()._attn_implementation
    if name != SEGMENTS:
        return
    size = max(1, min(40, int(getattr(model.config.get_text_config(), "vocab_size", 0) or 40)))
    ids = (torch.arange(_FEW_TOKENS, device=model.device) * 7 % size)[None]
    found = _logits(model, ids)
    natives = ("sdpa", "eager") if getattr(model, "_supports_sdpa", False) else ("eager",)
    for native in natives:
        try:
            model.set_attn_implementation(native)
            expected = _logits(model, ids)
        except Exception:  # the code of a model may fail in any way
            continue
        if expected is None:
            continue
        tolerance = _TOLERANCE.get(expected.dtype, 1e-4) * float(expected.abs().max())
        if found is not None and float((found - expected).abs().max()) <= tolerance:
            break
        return
    model.set_attn_implementation(SEGMENTS)


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor | None:
    try:
        return model(input_ids=ids, use_cache=False).logits
    except Exception:  # the code of a model may fail in any way
        return None


@contextmanager
def without_flex(model: PreTrainedModel) -> Iterator[None]:
    """Within, a model that has FlexAttention for its rows has plain attention, for calls that are not of
    packed rows.
    """
    uses_flex = model.config.get_text_config()._attn_implementation == FLEX
    if uses_flex:
        set_attention(model, plain_attention(model.config))
    try:
        yield
    finally:
        if uses_flex:
            set_attention(model, FLEX)
