"""The attention mask of packed rows, and which layouts a model's attention can express."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from preftune.types import Batch

_EXPRESSIBLE = {"full_attention", "sliding_attention"}


def packed_mask(batch: Batch, window: int | None = None) -> Bool[Tensor, "R 1 S S"]:
    """True where a query may attend to a key.

    A token sees the earlier tokens of its own sequence: those of its group's prompt and of its own completion. With a
    sliding window, only those less than `window` positions back, counted in the sequence and not in the row. Row-end
    padding sees itself alone, so that no softmax is empty.
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


def attention_inputs(batch: Batch, config: Any, dtype: torch.dtype, additive: bool) -> Tensor | dict[str, Tensor]:
    """The `attention_mask` argument for a model of this configuration.

    `additive` gives the mask as numbers to add to the attention scores, which eager attention wants.
    """
    kinds = layer_types(config)
    masks = {
        kind: packed_mask(batch, config.sliding_window if kind == "sliding_attention" else None) for kind in kinds
    }
    if additive:
        low = torch.finfo(dtype).min
        masks = {kind: torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, low) for kind, mask in masks.items()}
    named = getattr(config, "layer_types", None)
    return masks if named and len(kinds) > 1 else next(iter(masks.values()))
