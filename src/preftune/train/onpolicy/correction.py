"""Weights that correct for a sampler whose probabilities differ from the trainer's: importance sampling, truncated
or masked.

A server that computes in bf16 or fp8, or with other kernels, samples from mu where the trainer has pi. Weights
w = pi / mu turn the gradient of an expectation over mu's samples into that over pi's; a bound keeps a few large
ones from dominating.

Truncated importance sampling (TIS), min(w, C), token by token: Yao et al., "Your Efficient RL Framework Secretly
Brings You Off-Policy RL Training", 2025. Masked (IcePop, token by token): Ling team, "Every Step
Evolves", 2025, arXiv 2510.18855. Checked against the four modes of TRL's GRPOTrainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from preftune.data.masks import ones_of
from preftune.errors import ConfigError, refuse_idle
from preftune.objectives import Objective, objective_name
from preftune.sampling.sample import SampleOptions
from preftune.train.onpolicy.collect import CollectOptions
from preftune.types import Float, Group


@dataclass(frozen=True, kw_only=True)
class Correction:
    """How importance weights are bounded."""

    kind: Literal["truncate", "mask"]
    level: Literal["token", "sequence"]
    low: float
    high: float

    def weights(self, policy: np.ndarray, sampler: np.ndarray) -> np.ndarray:
        """The weight of each token of one completion, from its log-probabilities."""
        return self._bounded(self._ratio(policy, sampler)).astype(np.float32)

    def limited(self, policy: np.ndarray, sampler: np.ndarray) -> np.ndarray:
        """Which tokens have a ratio outside the bounds."""
        ratio = self._ratio(policy, sampler)
        return (ratio < self.low) | (ratio > self.high)

    def _ratio(self, policy: np.ndarray, sampler: np.ndarray) -> np.ndarray:
        log_ratio = np.asarray(policy, np.float64) - sampler
        if self.level == "sequence":
            log_ratio = np.full_like(log_ratio, log_ratio.sum())
        return np.exp(np.clip(log_ratio, -80.0, 80.0))

    def _bounded(self, ratio: np.ndarray) -> np.ndarray:
        if self.kind == "truncate":
            return ratio.clip(self.low, self.high)
        return np.where((ratio < self.low) | (ratio > self.high), 0.0, ratio)


def weighted(logp: Float[Tensor, " N"], weight: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The same numbers, with each one's gradient times its weight."""
    fixed = logp.detach()
    return fixed + weight.to(logp.dtype) * (logp - fixed)


def chosen_correction(
    options: CollectOptions, objective: Objective, sampling: SampleOptions, has_server: bool
) -> Correction | None:
    """The correction of a run; by default none in this process, where the sampler is exact, and TIS with a server.

    Raises ConfigError where `collect.correction` cannot have an effect.
    """
    known = sampling.temperature == 1 and not sampling.truncated
    kind = options.correction
    if kind == "auto":
        kind = "truncate" if has_server and objective.correctable and known else "none"
    elif kind != "none" and not objective.correctable:
        raise ConfigError(
            "collect.correction weighs the gradient of each completion by itself",
            got=f"{objective_name(objective)}, whose loss does not have one for each completion",
            expected="an objective on rewards such as grpo or rloo",
            do="Leave out --collect.correction",
        )
    elif kind != "none" and has_server and not known:
        raise ConfigError(
            "collect.correction needs the log-probabilities that a server sampled with",
            got="a temperature other than 1, top_k, top_p or min_p",
            do="Leave these out, or --collect.correction",
        )
    if kind == "none":
        idle = ("correction_level", "correction_min", "correction_max")
        refuse_idle(options, "without a correction", *idle, prefix="collect.", do="Set --collect.correction")
        return None
    return Correction(
        kind=kind, level=options.correction_level, low=options.correction_min, high=options.correction_max
    )


def correction_metrics(
    correction: Correction, policy: Sequence[np.ndarray], sampler: Sequence[np.ndarray]
) -> dict[str, float]:
    """Mean weight, and the share of tokens whose ratio is outside the bounds."""
    pairs = list(zip(policy, sampler, strict=True))
    return {
        "correction/weight": float(np.mean(np.concatenate([correction.weights(*one) for one in pairs]))),
        "correction/limited": float(np.mean(np.concatenate([correction.limited(*one) for one in pairs]))),
    }


def gradient_weights(groups: Sequence[Group]) -> Tensor | None:
    """The weights of the groups' tokens, one completion after another; None where all are 1."""
    if not any(group.correction for group in groups):
        return None
    parts = [weight for group in groups for weight in group.correction or ones_of(group)]
    return torch.from_numpy(np.concatenate(parts))
