"""The optimizer, its options, and the learning rate of each step."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.objectives.learning_rates import LearningRates
from preftune.spec import suggestion
from preftune.text import plural


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """The optimizer and its schedule.

    Args:
        name: "adamw", "adamw-8bit" (package torchao), "adafactor", "muon" (matrices inside the model; AdamW for
            the rest) or "schedule-free" (package schedulefree; with schedule constant).
        learning_rate: peak learning rate. When not given: the default of the objective, whose page states its
            source; ten times as large for adapters (lora.rank above 0).
        value_learning_rate: peak learning rate of a critic. When not given: 1e-3 for a scalar head on the policy,
            which starts at 0 and must learn within a few steps; 9e-6 for a separate network (critic).
        schedule: what follows the warm-up: "linear" or "cosine" to zero, or "constant".
        warmup_ratio: share of all steps in which the learning rate rises linearly from zero.
        warmup_steps: the same as a number of steps, in place of warmup_ratio.
        weight_decay: decoupled weight decay.
        adam_beta1: decay of the gradient's mean.
        adam_beta2: decay of the gradient's square.
        adam_epsilon: added to the root of the latter.
        max_grad_norm: the gradient of a step is scaled down to this norm; 0 leaves it as it is.
        weights: "fp32", or with precision bf16 "bf16": all weights train in bf16, they and both moments
            rounded up or down by
            chance: 10 bytes a weight, gradient included, instead of 16.
        extragradient: on-policy: steps come in twos; the first is taken back once the second's samples are
            drawn (EGPO).
    """

    name: str = "adamw"
    learning_rate: float | None = None
    value_learning_rate: float | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    weights: Literal["fp32", "bf16"] = "fp32"
    extragradient: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _optimizer_name(self.name))
        numbers = "a number in [0, inf)"
        check_range(self, "[0, inf)", "learning_rate", "weight_decay", "max_grad_norm", expected=numbers)
        check_range(self, "(0, inf)", "value_learning_rate", expected="a number above 0")
        check_range(self, "[0, 1]", "warmup_ratio", expected="a number in [0, 1]")
        check_range(self, "[0, inf)", "warmup_steps")
        if self.warmup_steps is not None:
            refuse_idle(
                self, "beside optim.warmup_steps", "warmup_ratio", prefix="optim.", do="Leave one out"
            )
        check_range(self, "[0, 1)", "adam_beta1", "adam_beta2", expected="a number in [0, 1)")
        check_range(self, "(0, inf)", "adam_epsilon")
        if self.name == "adafactor":
            idle = ("adam_beta1", "adam_beta2", "adam_epsilon")
            refuse_idle(self, "on adafactor, which keeps no first moment", *idle, prefix="optim.")
        if self.name == "schedule-free" and self.schedule != "constant":
            raise ConfigError(
                "optim.name schedule-free averages weights in place of a schedule",
                got=f"optim.schedule {self.schedule}",
                expected="constant",
                do="Set --optim.schedule constant",
            )
        if self.name != "adamw":
            where = f"with optim.name {self.name}"
            refuse_idle(
                self,
                where,
                "weights",
                "extragradient",
                "value_learning_rate",
                prefix="optim.",
                do="Use optim.name adamw",
            )

    def resolved(self, rates: LearningRates, lora_rank: int) -> "OptimOptions":
        """With a learning rate: the one that is set, or the default of the objective with these rates."""
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=rates.default_for(lora_rank))

    @property
    def peak(self) -> float:
        """The learning rate, which every run's configuration has resolved."""
        assert self.learning_rate is not None, "the learning rate is resolved with the objective"
        return self.learning_rate


OPTIMIZERS = ("adamw", "adamw-8bit", "adafactor", "muon", "schedule-free")
_FAMILIAR = {
    "adamw": ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adam", "paged_adamw_32bit"),
    "adamw-8bit": ("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "paged_adamw_8bit"),
    "schedule-free": ("schedule_free_adamw", "schedule_free", "schedulefree"),
}
"""Names that other programs use for the same optimizers."""


def _optimizer_name(name: str) -> str:
    for ours, others in _FAMILIAR.items():
        if name.lower() in others:
            return ours
    if name.lower() not in OPTIMIZERS:
        raise ConfigError(
            "optim.name is no optimizer that preftune has",
            got=name,
            expected=", ".join(OPTIMIZERS),
            do=suggestion(name.replace("_", "-"), OPTIMIZERS),
        )
    return name.lower()


VALUE_LEARNING_RATE = 1e-3
"""Of a critic's scalar head: a linear read-out of the policy's states, far from the weights that fine-tuning moves."""
CRITIC_LEARNING_RATE = 9e-6
"""Of a critic that is a separate network, all of whose weights train."""


def warmup_of(num_steps: int, options: OptimOptions) -> int:
    """Steps of the warm-up."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    return round(options.warmup_ratio * num_steps)


def schedule_line(num_steps: int, options: OptimOptions) -> str:
    """Describe the learning-rate schedule in words."""
    warmup = warmup_of(num_steps, options)
    line = f"learning rate {options.peak:g}, {options.schedule}, {plural(warmup, 'step')} of warm-up"
    return line if warmup < num_steps else f"{line}, so that no step has the full rate"


def learning_rate(step: int, num_steps: int, options: OptimOptions) -> float:
    """Learning rate of step 1..num_steps: a linear rise to the peak over the warm-up, then the schedule.

    The first step is never zero, and the last one still moves: a schedule reaches zero after the last step.
    """
    warmup = warmup_of(num_steps, options)
    if step <= warmup:
        return options.peak * step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, num_steps - warmup)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return options.peak * factor[options.schedule]


class HalfStep:
    """Weights and moments as they were before a half step, to which the full step returns.

    The extragradient method (Korpelevich, 1976): a half step from theta gives theta', where samples are
    drawn; the full step goes from theta again, by the gradient there on those samples. For preferences that
    are not transitive: Zhou et al., 2025 (EGPO).
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._weights: list[Tensor] = []
        self._moments: dict = {}

    def keep(self) -> None:
        """Before the half step."""
        self._weights = [p.detach().clone() for p in self._parameters()]
        self._moments = copy.deepcopy(self._optimizer.state_dict())

    @torch.no_grad()
    def put_back(self) -> None:
        """Before the full step, once its samples are drawn."""
        for parameter, weight in zip(self._parameters(), self._weights, strict=True):
            parameter.copy_(weight)
        self._optimizer.load_state_dict(self._moments)
        self._weights, self._moments = [], {}

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]
