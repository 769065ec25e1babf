"""RWR: likelihood weighted by the exponential of the reward."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import mean_tokens, num_tokens, per_token, sum_tokens
from preftune.objectives.checks import positive
from preftune.objectives.groupwise import group_metrics
from preftune.objectives.kinds import RewardObjective
from preftune.objectives.learning_rates import rates_of
from preftune.types import Float, Int, Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class RWR(RewardObjective):
    """Maximum likelihood in which a completion counts as much as the exponential of its reward.

        L = -w(y) log pi(y_t), the mean over all tokens of the step,   w(y) = min( exp(r(y) / T), max_weight )

    Reward-weighted regression (Peters and Schaal, ICML 2007) as in Tajwar et al., ICML 2024, arXiv
    2404.14367. Weights are neither normalized nor centered: the normalizer counts tokens. With equal rewards
    it is SFT on all completions.

    Args:
        temperature: T, > 0.
        max_weight: upper bound of a weight, > 0; the authors' code has 20.
        reduction: "token_mean" gives every token the same weight apart from its reward, "sequence_mean" every
            completion.
    """

    name = "rwr"
    learning_rates = rates_of(1e-5, "the authors' code, the default of all its trainers")

    temperature: float = positive(1.0)
    max_weight: float = positive(20.0)
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " U"]:
        """One per token, or per completion."""
        num_units = num_tokens(lengths) if self.reduction == "token_mean" else len(lengths)
        return torch.ones(num_units, dtype=torch.get_default_dtype(), device=lengths.device)

    @property
    def length_normalized(self) -> bool:
        return self.reduction == "sequence_mean"

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        exponent = (signal.reward / self.temperature).clamp(max=math.log(self.max_weight))
        reward_weight = exponent.exp().to(scores.logp.dtype)
        if self.reduction == "token_mean":
            per_unit = -per_token(reward_weight, scores.lengths) * scores.logp
        else:
            per_unit = -reward_weight * mean_tokens(scores.logp, scores.lengths)
        metrics = group_metrics(scores, signal, sum_tokens(scores.logp, scores.lengths))
        return Losses(
            per_unit=per_unit,
            weight=self.weights(scores.lengths, signal).to(per_unit.dtype),
            metrics=metrics | {"rwr/weight": reward_weight},
        )
