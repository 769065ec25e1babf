"""ORPO: likelihood plus a ratio of odds, in one stage and without a reference."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import mean_tokens
from preftune.objectives.checks import check_positive
from preftune.objectives.links import log_odds, logistic
from preftune.objectives.pairwise import losses_with_nll, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """Fine-tuning on the chosen completion, with a logistic loss on how its odds compare to the rejected
    one's.

        L = NLL(chosen) / |chosen| - w * log sigma( lo(chosen) - lo(rejected) )
        lo(y) = lpbar - log(1 - exp(lpbar)),   lpbar = log pi(y) / |y|

    Hong, Lee and Thorne, "ORPO: Monolithic Preference Optimization without Reference Model", EMNLP 2024,
    arXiv
    2403.07691. The authors' likelihood term covers the prompt too, unless told otherwise; objectives see no
    prompt, so here it is the completion's. Odds are exact in fp32 up to p = 1 - 1e-7 per token on average,
    and constant above.

    Args:
        odds_weight: w (the paper's lambda; `beta` in some implementations), > 0.
    """

    odds_weight: float = 0.1

    def __post_init__(self) -> None:
        check_positive("orpo", odds_weight=self.odds_weight)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def signal(self) -> type[Pairs]:
        return Pairs

    def weights(self, lengths: Int[Tensor, " C"], signal: Pairs) -> Float[Tensor, " U"]:
        """One per pair."""
        return pair_weights(signal)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        odds = log_odds(mean_tokens(scores.logp, scores.lengths))
        preference = self.odds_weight * logistic(pair_margin(odds, signal))
        return losses_with_nll(preference, 1.0, "mean", scores, signal, rewards=odds)
