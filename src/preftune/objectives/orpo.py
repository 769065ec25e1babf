"""ORPO: likelihood plus a ratio of odds, in one stage and without a reference."""

from dataclasses import dataclass

from preftune.objectives.base import mean_tokens
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import log_odds, logistic
from preftune.objectives.pairwise import losses_with_nll, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class ORPO(PairObjective):
    """Fine-tuning on the chosen completion, with a logistic loss on how its odds compare to the rejected
    one's.

        L = NLL(chosen) / |chosen| - w * log sigma( lo(chosen) - lo(rejected) )
        lo(y) = lpbar - log(1 - exp(lpbar)),   lpbar = log pi(y) / |y|

    Hong, Lee and Thorne, "ORPO: Monolithic Preference Optimization without Reference Model", EMNLP 2024,
    arXiv
    2403.07691. The authors' likelihood term covers the prompt too by default; objectives see no
    prompt, so here it is the completion's. Odds are exact in fp32 up to p = 1 - 1e-7 per token on average,
    and constant above.

    Args:
        odds_weight: w (the paper's lambda; `beta` in some implementations), > 0.
    """

    name = "orpo"
    learning_rates = rates_of(5e-6, "the paper (appendix C, as in TRL's index of papers)")
    length_normalized = True

    odds_weight: float = positive(0.1)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        odds = log_odds(mean_tokens(scores.logp, scores.lengths))
        preference = self.odds_weight * logistic(pair_margin(odds, signal))
        return losses_with_nll(preference, 1.0, "mean", scores, signal, rewards=odds)
