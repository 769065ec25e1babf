"""Run a model with 16-bit weights in fp32 for a while, so that its rounding does not hide what a proof compares."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from preftune.model.kernels.recompute import layers_of

_LOW = (torch.bfloat16, torch.float16)


@contextmanager
def in_fp32(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Within, passes of the model are in fp32, with the weights that it has.

    What lies outside the layers is cast at once, a layer while it computes: one layer in fp32 is held at a
    time. Casting there and back changes no bit. A model in fp32 or fp64 is left alone. With `gradients` there
    may be a backward pass, for which layers are computed a second time.
    """
    layers = layers_of(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    rest = _low(parameter for parameter in model.parameters() if id(parameter) not in inside)
    hooks, replaced = [], []
    for layer in layers:
        own = _low(layer.parameters())
        if gradients and own:
            wide = partial(_widened, _Bare(layer))
            layer.forward = partial(checkpoint, wide, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
            replaced.append(layer)
        else:
            hooks.append(layer.register_forward_pre_hook(_casts(own, torch.float32)))
            hooks.append(layer.register_forward_hook(_casts(own, None), always_call=True))
    _cast(rest, torch.float32)
    try:
        yield
    finally:
        _cast(rest, None)
        for hook in hooks:
            hook.remove()
        for layer in replaced:
            del layer.forward


class _Bare(nn.Module):
    """A layer as its class computes it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return type(self.layer).forward(self.layer, *inputs, **named)


def _widened(bare: _Bare, *inputs: Any, **named: Any) -> Any:
    wide = {name: one.float() for name, one in bare.named_parameters() if one.dtype in _LOW}
    return functional_call(bare, wide, inputs, named)


_Weights = list[tuple[nn.Parameter, torch.dtype]]


def _low(parameters: Iterable[nn.Parameter]) -> _Weights:
    """The layers with 16-bit weights, and their dtype."""
    return [(parameter, parameter.dtype) for parameter in parameters if parameter.dtype in _LOW]


def _cast(weights: _Weights, dtype: torch.dtype | None) -> None:
    """To the precision, or back to their own."""
    for parameter, own in weights:
        parameter.data = parameter.data.to(dtype or own)


def _casts(weights: _Weights, dtype: torch.dtype | None) -> Any:
    def hook(*_: Any) -> None:
        _cast(weights, dtype)

    return hook
