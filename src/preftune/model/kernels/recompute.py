"""Which layers keep their activations for the backward, and which are computed a second time there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import ModelError
from preftune.model.kernels.gated import keeping_products

_INPUT_SHARE = 0.08
"""Share of a layer's activations that its input makes up: one width of about thirteen (docs/scaling.md)."""


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the residual stream, in the order of their computation."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def check_recomputes(model: nn.Module) -> None:
    if not layers_of(model):
        raise ModelError(
            "The layers of this model cannot be computed a second time",
            got=type(model).__name__,
            expected="layers that transformers knows as such",
            do="Leave gradient_checkpointing out",
        )


def num_recomputed(layers: int, positions: int, kept: int) -> int:
    """The fewest layers of which only the inputs are kept so that no more is kept than `kept` positions take
    in all layers.

    All of them where that is not possible, for the inputs alone are more.
    """
    return (
        0
        if positions <= kept
        else min(layers, math.ceil(layers * (1 - kept / positions) / (1 - _INPUT_SHARE)))
    )


def kept_as(positions: int, kept: int | None) -> float:
    """The positions whose activations take in all layers what so many take; with `kept` 0 every one keeps as
    much, the inputs.
    """
    return float(positions) if not kept or positions <= kept else max(float(kept), _INPUT_SHARE * positions)


@contextmanager
def recomputing(model: nn.Module, positions: int, kept: int | None) -> Iterator[None]:
    """Within, a pass over a given number of positions keeps what `kept` of them take in all layers; all that there is
    if None.

    The first layers keep their input only and are computed again in the backward, which changes no bit. It
    comes to them last, when what the others had kept is gone, so that their activations add nothing to the
    peak. They are not put in training mode, which transformers' own switch requires: some would then drop
    out.
    """
    layers = layers_of(model) if kept is not None else []
    again = layers[: num_recomputed(len(layers), positions, kept or 0)]
    for layer in again:
        forward = keeping_products()(layer.forward)
        layer.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in again:
            del layer.forward
