"""Stepwise: a reward model out of labels or values of the steps of answers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from preftune.objectives.kinds import RewardObjective
from preftune.objectives.learning_rates import rates_of
from preftune.types import Float, Int, Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class Stepwise(RewardObjective):
    """A scalar head's value at the end of each beginning of an answer, fitted to the number that the data give it.

        logistic  L = -t log sigma(v) - (1 - t) log sigma(-v)
        squared   L = (v - t)^2

    with v the head's value after the last token of a completion has been read, and t its reward. A completion is an
    answer up to the end of a step: t is 1 for a right step and 0 for a wrong one (Lightman et al., "Let's Verify Step
    by Step", 2023, arXiv 2305.20050), or the share of rollouts from there that succeed (Wang et al., "Math-Shepherd",
    2023, arXiv 2312.08935). The squared form takes any number, such as advantages of steps (Setlur et al., "Rewarding
    Progress", 2024, arXiv 2410.08146). The two losses are the usual losses of a probability and of a number.

    Args:
        loss: "logistic" for numbers in [0, 1], "squared" for any.
    """

    name = "stepwise"
    learning_rates = rates_of(1e-5, "TRL's default for process reward models (PRMConfig)")
    needs = frozenset({"value_after"})
    trains = "reward model"
    chosen_fall = "possible"
    length_normalized = True

    loss: Literal["logistic", "squared"] = "logistic"

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " U"]:
        """One per completion."""
        return torch.ones(len(lengths), dtype=torch.get_default_dtype(), device=lengths.device)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        assert scores.value_after is not None, "the objective declares value_after in its needs"
        value = scores.value_after[scores.lengths.cumsum(0) - 1]
        target = signal.reward.to(value.dtype)
        if self.loss == "logistic":
            per_unit, bound = F.softplus(value) - target * value, 0.0
        else:
            per_unit, bound = (value - target).square(), 0.5
        right = (value.detach() > bound) == (target > 0.5)
        return Losses(
            per_unit=per_unit,
            weight=self.weights(scores.lengths, signal).to(per_unit.dtype),
            metrics={"steps/accuracies": right.to(value.dtype), "steps/values": value.detach()},
        )
