"""Proof that an attention function computes what a model's plain attention computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from preftune.model.attention_masks import layer_types, set_attention
from preftune.model.attention_segments import SEGMENTS
from preftune.model.kernels.likeness import no_further, row_errors
from preftune.model.kernels.widen import in_fp32
from preftune.model.layout import LayoutOptions, Sharing, collate
from preftune.model.policy import PROBE, hidden_states, to_device
from preftune.types import Batch, Group

_APART = (1e-3, 1e-3, 1e-2)
"""In fp32 at any position, relative to its norm: of hidden states, of those with a graph, of gradients. Two
plain attentions of SmolLM2 are 3e-5 and 7e-4 apart.
"""

_WIDE = Group(  # several blocks of FlexAttention
    prompt=np.arange(120, dtype=np.int32) % 40 + 3,
    completions=(np.arange(70, dtype=np.int32) % 31 + 3, np.arange(50, dtype=np.int32) % 23 + 3),
)
Probes = Sequence[tuple[Sequence[Group], int]]
"""Groups, and positions at once."""

SHAPES: Probes = (([PROBE], 4), ([_WIDE] * 2, 4), ([_WIDE] * 6, 1920))
"""One row, rows of a fixed number and width, and any. Kernels are compiled for each, with and without
gradients: what a run will meet is compiled here already.
"""


def prove_attention(
    model: PreTrainedModel, name: str, sharing: Sharing, precision: str, probes: Probes = SHAPES
) -> str:
    """Give the model the named attention function if it changes nothing, and "" back; else leave the model as
    it is and return why not.

    Hidden states, and if the model trains the gradient of its embeddings, are compared with those of the
    attention that the model has, in fp32: in bf16 two exact attentions of a real model may be half of the
    largest number apart. There the function must run, give finite numbers, and be no further from the fp32
    result than three times plain attention.
    """
    plain = str(model.config.get_text_config()._attn_implementation)
    is_low = precision == "bf16" or model.dtype in (torch.bfloat16, torch.float16)
    try:
        for groups, tokens in probes:
            layout = LayoutOptions(micro_batch_tokens=tokens)
            batch = to_device(collate(groups, layout, sharing), model.device)
            told = _compared(model, (plain, name), batch, sharing, is_low)
            if told:
                set_attention(model, plain)
                return told
    except Exception as failure:  # a compiler for kernels runs here, which can fail in any way
        set_attention(model, plain)
        return f"it does not run ({_in_short(failure)})"
    set_attention(model, name)
    return ""


def _in_short(failure: Exception) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:160]}"


_SEGMENTS = ((120, 69, 49), (7, 5), (1, 3, 130))
"""Lengths of prompts, each with those of its completions, in the row of `prove_kernel`."""


def prove_kernel(config: Any, name: str, device: torch.device, is_low: bool) -> str:
    """ "" if the attention function of flat rows computes on random queries, keys and values of the model's heads,
    on this device, what `segments` compute; else why not. Values and gradients, as in `prove_attention`.
    """
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    draw, length = torch.Generator().manual_seed(0), sum(map(sum, _SEGMENTS))
    drawn = [torch.randn(1, n, length, size, generator=draw) for n in (heads, key_heads, key_heads, heads)]
    inputs = [states.to(device, torch.bfloat16) for states in drawn]
    windowed = "sliding_attention" in layer_types(config)
    try:
        for window in {0, int(config.sliding_window) if windowed else 0}:
            told = _kernels_compared(inputs, name, torch.tensor(window).view(1, 1, 1, 1), is_low)
            if told:
                return told
    except Exception as failure:  # kernels can fail in any way
        return f"its kernel does not run ({_in_short(failure)})"
    return ""


def _kernels_compared(inputs: Sequence[Tensor], name: str, window: Tensor, is_low: bool) -> str:
    """What is wrong with the function, for one window."""

    def computed(function: str, dtype: torch.dtype) -> list[Tensor]:
        states = [one.to(dtype).requires_grad_() for one in inputs[:3]]
        attend = ALL_ATTENTION_FUNCTIONS[function]
        with torch.enable_grad():
            out = attend(nn.Identity(), *states, window, preftune_segments=_SEGMENTS)[0]
            weight = inputs[3].to(dtype).transpose(1, 2)
            return [out.detach(), *torch.autograd.grad((out * weight).sum(), states)]

    truth, found = computed(SEGMENTS, torch.float32), computed(name, torch.float32)
    apart = max(float(row_errors(one, right).max()) for one, right in zip(found, truth, strict=True))
    if not apart < _APART[0]:
        return f"its kernel changes values or gradients (by {apart:.1g} relative)"
    if not is_low:
        return ""
    return no_further(computed(name, torch.bfloat16), computed(SEGMENTS, torch.bfloat16), truth)


def _compared(
    model: PreTrainedModel, names: tuple[str, str], batch: Batch, sharing: Sharing, is_low: bool
) -> str:
    """What is wrong with the second of two attention functions, on one batch."""
    truth, exact = (_states_and_gradient(model, name, batch, sharing, True) for name in names)
    apart = [float(row_errors(one, right).max()) for one, right in zip(exact, truth, strict=True)]
    if not all(error < limit for error, limit in zip(apart, _APART, strict=False)):
        return f"it changes hidden states or gradients (by {max(apart):.1g} relative)"
    if not is_low:
        return ""
    usual, found = (_states_and_gradient(model, name, batch, sharing, False) for name in names)
    if batch.num_positions < len(_WIDE.prompt):  # too few tokens for the mean error
        usual = found
    return no_further(found, usual, truth)


def _states_and_gradient(
    model: PreTrainedModel, name: str, batch: Batch, sharing: Sharing, exact: bool
) -> list[Tensor]:
    """Hidden states of the real positions in fp32 or, not `exact`, in bf16; if the model trains, computed with
    a graph too, and the gradient of the embeddings.
    """
    set_attention(model, name)
    real = batch.group_ids.flatten() >= 0
    embedded: list[Tensor] = []

    def leaf(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_(torch.is_grad_enabled()))
        return embedded[-1]

    trains = any(parameter.requires_grad for parameter in model.parameters())
    hook = model.get_input_embeddings().register_forward_hook(leaf)
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=not exact):
            with torch.no_grad(), in_fp32(model) if exact else torch.no_grad():
                found = [hidden_states(model, batch, sharing)[real].float()]
            if not trains:
                return found
            with torch.enable_grad(), in_fp32(model, gradients=True) if exact else torch.enable_grad():
                states = hidden_states(model, batch, sharing).float()
                mix = torch.linspace(-1.0, 1.0, states.shape[1], device=states.device)
                weight = (1 + batch.position_ids.flatten() % 3)[:, None] * mix
                gradient = torch.autograd.grad((weight * states)[real].sum(), embedded[-1])[0]
            gradient = gradient[:, : batch.input_ids.shape[1]].flatten(
                0, 1
            )  # without padding to whole blocks
            return [found[0], states.detach()[real], gradient[real].float()]
    finally:
        hook.remove()
