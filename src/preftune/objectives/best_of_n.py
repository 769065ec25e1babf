"""Best-of-N: likelihood of the best completion of each prompt, against that of the others."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from preftune.objectives.base import mean_tokens, sum_tokens
from preftune.objectives.checks import between, not_negative
from preftune.objectives.groupwise import group_index, group_losses, group_max, group_sum, reward_softmax
from preftune.objectives.kinds import GroupObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import NLLScale
from preftune.types import Entries, Float, Losses, Rewards, TokenScores

Negatives = Literal["sum", "mean", "worst"]


@dataclass(frozen=True, kw_only=True)
class BestOfN(GroupObjective):
    """Maximum likelihood of the best completion of a prompt, with a small pull down on the others.

        L = -l(best) + negative_weight * N,   l(y) = (1/n) sum_t log pi(y_t)   (nll_scale mean), or the sum
        N = sum, or mean, of l over the other completions, or l(worst)

    the mean over groups. Best-of-N with a negative gradient as in the bandits of Tajwar et al., "Preference
    Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data", ICML 2024, arXiv 2404.14367, checked
    against the authors' code; a completion there is one token, so the scale is ours. At a weight of 0 it is
    `sft` with sequence_mean on the best completions. Completions that share the best or the worst reward
    share its place.

    Args:
        negative_weight: lambda, >= 0; 0.05 was tried in the bandits.
        negatives: which completions are pulled down: all below the best, as a sum or as a mean, or the worst
            alone.
        min_ratio: a completion is let go once exp(l(y) - l(best)) is below, in [0, 1): without a bound it
            would be pushed permanently. 0.01 in the authors' code; at 0 there is none.
        nll_scale: whether l is the mean or the sum over the tokens of a completion.
    """

    name = "best-of-n"
    learning_rates = rates_of(1e-5, "the authors' code, the default of all its trainers")

    negative_weight: float = not_negative(0.05)
    negatives: Negatives = "sum"
    min_ratio: float = between(0.01, "[0, 1)")
    nll_scale: NLLScale = "mean"

    @property
    def length_normalized(self) -> bool:
        return self.nll_scale == "mean"

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        over_tokens = sum_tokens if self.nll_scale == "sum" else mean_tokens
        likelihood = over_tokens(scores.logp, scores.lengths)
        index, _ = group_index(signal)
        best = reward_softmax(signal, 0.0, likelihood.dtype)
        best_likelihood = group_sum(best * likelihood, signal)
        behind = likelihood.detach() - best_likelihood.detach()[index]
        pushed = behind >= (math.log(self.min_ratio) if self.min_ratio > 0 else -math.inf)
        share = self._negative_share(best, signal)
        negative = group_sum(share * pushed * likelihood, signal)
        losses = group_losses(self.negative_weight * negative - best_likelihood, scores, signal, likelihood)
        kept = Entries(values=pushed.to(likelihood.dtype), counted=share > 0)
        return Losses(
            per_unit=losses.per_unit,
            weight=losses.weight,
            metrics={**losses.metrics, "nll": -best_likelihood.detach(), "negatives/pushed": kept},
        )

    def _negative_share(self, best: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " C"]:
        """How much of its group's negative term each completion is; nothing where all rewards are equal."""
        others = (best == 0).to(best.dtype)
        if self.negatives == "sum":
            return others
        index, _ = group_index(signal)
        if self.negatives == "worst":
            others = others * (signal.reward == -group_max(-signal.reward, signal)[index])
        return others / group_sum(others, signal).clamp(min=1)[index]
