"""The arithmetic that must be done: floating-point operations of a model on some groups, and how fast a
machine multiplies.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from preftune.model.adapters import unwrapped_head
from preftune.model.attention_masks import layer_types
from preftune.model.policy import text_body
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model that determine its number of multiplications."""

    body: int  # entries of the matrices that every position is multiplied with
    trained_body: int  # of these, those that get a gradient
    head: int  # entries of the output head
    trains_head: bool
    # for each layer: query heads times their size, and its window
    attention: tuple[tuple[int, int | None], ...]

    @staticmethod
    def of(model: PreTrainedModel) -> "Shape":
        config = model.config.get_text_config()
        embedding, linear = model.get_input_embeddings().weight, unwrapped_head(model.get_output_embeddings())
        assert isinstance(linear, nn.Linear), "scoring has refused any other head"
        head = linear.weight
        matrices = [p for p in text_body(model).parameters() if p.ndim == 2 and p is not embedding]
        kinds = (
            getattr(config, "layer_types", None)
            or [next(iter(layer_types(config)))] * config.num_hidden_layers
        )
        heads = getattr(config, "num_attention_heads", None) or 0  # none in a recurrent model
        size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        width = heads * size
        return Shape(
            body=sum(p.numel() for p in matrices),
            trained_body=sum(p.numel() for p in matrices if p.requires_grad),
            head=head.numel(),
            trains_head=head.requires_grad,
            attention=tuple(
                (width, config.sliding_window if kind == "sliding_attention" else None) for kind in kinds
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations; a product of n by m by k counts 2 n m k.

    Without what need not be done: a prompt counts once for all its completions, the head counts at scored
    tokens, attention counts the pairs of positions that see each other. What is computed twice to save memory
    counts once.
    """

    forward: float
    backward: float

    @property
    def training(self) -> float:
        return self.forward + self.backward


def work_of(shape: Shape, groups: Sequence[Group]) -> Work:
    """Forward: 2 (body * positions + head * scored tokens) + 4 * width * pairs for each layer. Backward: the
    same for what flows to the inputs and, of trained matrices, for their gradient; 8 * width * pairs.
    """
    positions = scored = 0
    pairs = dict.fromkeys({window for _, window in shape.attention}, 0)
    for group in groups:
        prompt, completions = len(group.prompt), [len(ids) - 1 for ids in group.completions]
        positions += prompt + sum(completions)
        scored += sum(group.num_scored)
        for window in pairs:
            past = _pairs(prompt, window)
            pairs[window] += past + sum(_pairs(prompt + length, window) - past for length in completions)
    attention = 4.0 * sum(width * pairs[window] for width, window in shape.attention)
    body, head = 2.0 * shape.body * positions, 2.0 * shape.head * scored
    backward = body + 2.0 * shape.trained_body * positions + head * (1 + shape.trains_head) + 2 * attention
    return Work(forward=body + head + attention, backward=backward)


def _pairs(length: int, window: int | None) -> int:
    """Pairs (query, key) in a causal sequence."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


@cache
def product_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a matrix product on this device with this number of threads:
    the best of some.
    """
    size, dtype = (
        1024 if device.type == "cpu" else 8192,
        torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    chance = torch.Generator(device).manual_seed(
        0
    )  # not the one that draws: a run must not depend on a clock
    # A GPU multiplies ones about a tenth faster than random numbers, which cost it more power.
    left, right = (
        torch.empty(size, size, dtype=dtype, device=device).normal_(generator=chance) for _ in range(2)
    )
    best = float("inf")
    for _ in range(4):
        finish(device)
        started = time.perf_counter()
        torch.matmul(left, right)
        finish(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def utilisation(
    operations: float, seconds: float, device: torch.device, precision: str, processes: int = 1
) -> float:
    """Operations over those of matrix products that as many such processes could have done meanwhile."""
    return operations / (max(seconds, 1e-9) * processes * product_rate(device, precision))


def finish(device: torch.device) -> None:
    """Wait for what a GPU still computes, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
