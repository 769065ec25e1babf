"""Which attention function computes packed rows on a GPU: the fastest that is proven to change nothing."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from preftune.errors import ModelError
from preftune.model.attention_blocks import FLEX
from preftune.model.attention_proof import prove_attention, prove_kernel
from preftune.model.attention_varlen import VARLEN, unavailable
from preftune.model.device import available
from preftune.model.layout import LayoutOptions, Sharing

ON_GPU = ("varlen", "flex")
"""Values of `layout.attention` that need a CUDA device."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An attention function, the rows it computes, and why it is left out ("" if it is not)."""

    label: str  # of `layout.attention`
    function: str  # among those of transformers
    rows: Sharing
    refusal: str


def candidates(
    model: PreTrainedModel, sharing: Sharing, is_low: bool, device: torch.device
) -> list[Candidate]:
    """Attention functions for a model whose densest exact rows are `sharing`, the fastest first."""
    in_rows = "" if sharing in ("flat", "shared", "packed") else "the model has one sequence per row"
    flat = in_rows or (
        "" if sharing == "flat" else f"it computes flat rows, and the model has {sharing} rows"
    )
    moved = (
        ""
        if model.device.type == device.type
        else "a model in shards is proven on the CPU, which lacks its backward pass"
    )
    return [
        Candidate(label="varlen", function=VARLEN, rows="flat", refusal=flat or unavailable(device, is_low)),
        Candidate(
            label="flex",
            function=FLEX,
            rows="shared" if sharing == "flat" else sharing,  # it has kernels for rows of like length
            refusal=in_rows or moved,
        ),
    ]


def choose_attention(
    model: PreTrainedModel, options: LayoutOptions, precision: str, sharing: Sharing, device: torch.device
) -> tuple[Sharing, str]:
    """The rows, and which attention function the model got or why it keeps its plain attention: (sharing, what
    the layout line says). An error where the function that `options` names is refused.
    """
    is_low = precision == "bf16" or model.dtype in (torch.bfloat16, torch.float16)
    refused = []
    for one in candidates(model, sharing, is_low, device):
        if options.attention not in ("auto", one.label):
            continue
        refusal = one.refusal
        if not refusal and one.rows == "flat":  # on the device, where a model in shards is not yet
            where = device if device.type in available() else model.device
            refusal = prove_kernel(model.config.get_text_config(), one.function, where, is_low)
        refusal = refusal or prove_attention(model, one.function, one.rows, precision)
        if not refusal:
            return one.rows, "; ".join([f"{one.label} attention", *refused])
        if options.attention == one.label:
            raise ModelError(
                f"layout.attention {one.label} cannot be used for this model",
                got=refusal,
                do="Leave it out, or set it to sdpa",
            )
        refused.append(f"not {one.label}: {refusal}")
    return sharing, "; ".join(["plain attention", *refused])
