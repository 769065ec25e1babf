"""Dynamic fine-tuning: maximum likelihood with each token weighted by its own probability."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import label_metrics
from preftune.objectives.kinds import LabelObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.sft import SFT
from preftune.types import Entries, Float, Int, Labels, Losses, TokenScores


@dataclass(frozen=True, kw_only=True)
class DynamicFT(LabelObjective):
    """SFT on preferred completions in which a token counts as much as the policy believes in it.

        L = -mean_t sg(pi_t) * log pi_t over all tokens of the step

    sg is a stop-gradient. Wu et al., "On the Generalization of SFT: A Reinforcement Learning Perspective with
    Reward Rectification", 2025, arXiv 2508.05629; checked against a public implementation. The gradient is
    that of -pi_t: SFT's without the factor 1 / pi_t by which it favors tokens that the policy finds
    unlikely. Units and weights are those of SFT under token_mean.
    """

    name = "dynamic-ft"
    learning_rates = rates_of(5e-5, "the paper (section 4.1, as in TRL's index of papers)")
    imitates = True
    value_is_surrogate = True

    def weights(self, lengths: Int[Tensor, " C"], signal: Labels) -> Float[Tensor, " U"]:
        """One per token that is preferred; else zero."""
        return SFT().weights(lengths, signal)

    def __call__(self, scores: TokenScores, signal: Labels) -> Losses:
        probability = scores.logp.detach().exp()
        weight = self.weights(scores.lengths, signal).to(probability.dtype)
        return Losses(
            per_unit=-probability * scores.logp,
            weight=weight,
            metrics=label_metrics(scores, signal)
            | {"dynamic_ft/probability": Entries(values=probability, counted=weight > 0)},
        )
