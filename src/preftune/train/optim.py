"""The optimiser and the learning rate of each step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from preftune.train.options import OptimOptions


def make_optimiser(parameters: Iterable[nn.Parameter], options: OptimOptions) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon, weight_decay=options.weight_decay, fused=True,
    )  # fmt: skip


def learning_rate(step: int, num_steps: int, options: OptimOptions) -> float:
    """Learning rate of step 1..num_steps: a linear rise to the peak over the warm-up, then the schedule.

    The first step is never zero, and the last one still moves: a schedule reaches zero after the last step.
    """
    warmup = round(options.warmup_ratio * num_steps)
    if step <= warmup:
        return options.learning_rate * step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, num_steps - warmup)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return options.learning_rate * factor[options.schedule]
