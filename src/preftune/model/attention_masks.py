"""The attention mask of packed rows in the forms that models take, and which layouts a model's attention can
express.
"""

from typing import Any

import torch
import torch.compiler.config as compiler
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from preftune.model.attention_blocks import FLEX, block_mask
from preftune.types import Batch

_KERNELS = 64  # kinds of FlexAttention that may be compiled: shapes, windows, with and without gradients

_EXPRESSIBLE = {"full_attention", "sliding_attention"}


def packed_mask(batch: Batch, window: int | None = None) -> Bool[Tensor, "R 1 S S"]:
    """True where a query may attend to a key.

    A token sees the earlier tokens of its own sequence: those of its group's prompt and of its own
    completion. With a sliding window, only those less than `window` positions back, counted in the sequence
    and not in the row. Row-end padding sees itself alone, so that no softmax is empty.
    """
    group_q, group_k = batch.group_ids[:, :, None], batch.group_ids[:, None, :]
    branch_q, branch_k = batch.branch_ids[:, :, None], batch.branch_ids[:, None, :]
    order = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    causal = order[:, None] >= order[None, :]
    mask = (group_q == group_k) & (group_q >= 0) & causal & ((branch_k == 0) | (branch_k == branch_q))
    if window is not None:
        mask &= _distance(batch.position_ids) < window
    return (mask | torch.eye(len(order), dtype=torch.bool, device=order.device)).unsqueeze(1)


def _distance(position_ids: Int[Tensor, "R S"]) -> Int[Tensor, "R S S"]:
    return position_ids[:, :, None] - position_ids[:, None, :]


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Have the model's layers use the named attention function of transformers."""
    if name == FLEX:  # past its limit of 8 torch would compute whole rows, uncompiled, silently
        compiler.recompile_limit = max(compiler.recompile_limit, _KERNELS)
    model.set_attn_implementation(name)
    if model.config.get_text_config()._attn_implementation != name:
        raise NotImplementedError(f"{type(model).__name__} does not let its attention be chosen")


def layer_types(config: Any) -> set[str]:
    """Kinds of attention layers that a Hugging Face text configuration names."""
    named = getattr(config, "layer_types", None)
    if named:
        return set(named)
    # Older configurations have one kind of layer; a window there means that every layer slides.
    return {"sliding_attention"} if getattr(config, "sliding_window", None) else {"full_attention"}


def expressible(config: Any) -> bool:
    """Whether an explicit mask can keep the sequences of a row apart in every layer of the model."""
    return layer_types(config) <= _EXPRESSIBLE


def attention_inputs(batch: Batch, config: Any, dtype: torch.dtype) -> Any:
    """The `attention_mask` argument for a model of this configuration, in the form that its attention
    function wants.

    A block mask for FlexAttention, true and false for SDPA, numbers to add to the scores for eager attention;
    where a model has several kinds of layers, one for each by name.
    """
    kinds = layer_types(config)
    windows = {kind: config.sliding_window if kind == "sliding_attention" else None for kind in kinds}
    masks: dict[str, Any]
    if config._attn_implementation == FLEX:
        masks = {kind: block_mask(batch, window) for kind, window in windows.items()}
    else:
        masks = {kind: packed_mask(batch, window) for kind, window in windows.items()}
        if config._attn_implementation == "eager":
            low = torch.finfo(dtype).min
            masks = {
                kind: torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, low)
                for kind, mask in masks.items()
            }
    named = getattr(config, "layer_types", None)
    return masks if named and len(kinds) > 1 else next(iter(masks.values()))
