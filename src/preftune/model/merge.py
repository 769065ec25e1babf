"""Weights of several models as one: linear and spherical interpolation."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

MergeMethod = Literal["linear", "slerp"]


Weights = Mapping[str, Tensor]


# Below this sine of the angle two directions are one (or opposite), and the arc between them is not defined
# by them.
_STRAIGHT = 1e-6


def linear(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_m w_m theta_m, in fp64."""
    return torch.stack([w * one.double() for w, one in zip(weights, models, strict=True)]).sum(0)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two task vectors, whatever their lengths, in fp64.

        sin((1 - l) O) / sin(O) * d_1 + sin(l O) / sin(O) * d_2,   cos O = <d_1, d_2> / (|d_1| |d_2|)

    with l the share of `other`, in [0, 1]. Rame et al., "WARP", 2024, arXiv 2406.16768. Where the directions
    are the same or opposite, or a vector is 0, it is the straight line, its limit in the first case.
    """
    first, second = one.double(), other.double()
    omega = angle(first, second)
    if not math.sin(omega) > _STRAIGHT:
        return (1 - share) * first + share * second
    return (math.sin((1 - share) * omega) * first + math.sin(share * omega) * second) / math.sin(omega)


def angle(one: Tensor, other: Tensor) -> float:
    """The angle between two tensors as vectors, in [0, pi]; 0 if one of them is 0.

    From |u - v| and |u + v| of the unit vectors, which keeps the digits that a cosine near 1 loses.
    """
    first, second = one.double().flatten(), other.double().flatten()
    lengths = float(first.norm()), float(second.norm())
    if 0.0 in lengths:
        return 0.0
    u, v = first / lengths[0], second / lengths[1]
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


def merge_slerp(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """theta_0 + the task vectors theta_m - theta_0 merged with equal shares, in fp64.

    More than two are taken one after another, the m-th with a share of 1/m.
    """
    merged = models[0].double() - base.double()
    for count, model in enumerate(models[1:], start=2):
        merged = slerp(merged, model.double() - base.double(), 1 / count)
    return base.double() + merged


def towards(start: Tensor, end: Tensor, share: float) -> Tensor:
    """(1 - share) * start + share * end, in fp64: WARP's linear interpolation toward initialization (LITI)."""
    return (1 - share) * start.double() + share * end.double()


def merge_weights(
    models: Sequence[Weights],
    base: Weights | None,
    method: MergeMethod,
    shares: Sequence[float],
    share: float,
) -> dict[str, Tensor]:
    """Every weight tensor merged by itself, in the dtype that it has in the first model."""
    merged: dict[str, Tensor] = {}
    for name, first in models[0].items():
        layer = [model[name] for model in models]
        if not first.is_floating_point():
            merged[name] = first
            continue
        start = None if base is None else base[name]
        if method == "slerp":
            assert start is not None, "slerp has a base"
            found = merge_slerp(start, layer)
        else:
            found = linear(layer, shares)
        merged[name] = (found if start is None else towards(start, found, share)).to(first.dtype)
    return merged
