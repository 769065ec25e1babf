"""SFT: maximum likelihood. On chosen completions it is Pref-FT."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import label_metrics, mean_tokens, per_token
from preftune.objectives.kinds import LabelObjective
from preftune.objectives.learning_rates import rates_of
from preftune.types import Float, Int, Labels, Losses, TokenScores


@dataclass(frozen=True, kw_only=True)
class SFT(LabelObjective):
    """Negative log-likelihood of the preferred completions; dispreferred completions have weight 0.

        L = -mean_t logp_t over all tokens of the step   (token_mean), or
        L = -mean_y (1/|y|) sum_t logp_t                 (sequence_mean)

    On the chosen side of preference data it is Pref-FT (Tajwar et al., ICML 2024, arXiv 2404.14367), which
    averages over tokens.

    Args:
        reduction: "token_mean" lets every token weigh the same, "sequence_mean" every completion.
    """

    name = "sft"
    learning_rates = rates_of(
        2e-5, "TRL's default and the code of SimPO's authors; 1e-5 in the code of exo's authors", low=1e-5
    )
    imitates = True

    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"

    def weights(self, lengths: Int[Tensor, " C"], signal: Labels) -> Float[Tensor, " U"]:
        """One per token, or per completion, that is preferred; else zero."""
        preferred = (signal.label > 0).to(torch.get_default_dtype())
        return per_token(preferred, lengths) if self.reduction == "token_mean" else preferred

    @property
    def length_normalized(self) -> bool:
        return self.reduction == "sequence_mean"

    def __call__(self, scores: TokenScores, signal: Labels) -> Losses:
        per_unit = (
            -scores.logp if self.reduction == "token_mean" else -mean_tokens(scores.logp, scores.lengths)
        )
        return Losses(
            per_unit=per_unit,
            weight=self.weights(scores.lengths, signal).to(per_unit.dtype),
            metrics=label_metrics(scores, signal),
        )
