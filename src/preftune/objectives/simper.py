"""SimPER: inverse perplexities, and nothing to tune."""

from dataclasses import dataclass

from preftune.objectives.base import mean_tokens
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class SimPER(PairObjective):
    """The inverse perplexity of the chosen completion up, that of the rejected one down; no reference, no
    hyperparameter.

        L = -exp(lpbar(chosen)) + exp(lpbar(rejected)),   lpbar = log pi(y) / |y|

    Xiao et al., "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters", ICLR 2025
    (arXiv
    2502.00883). The loss lies in (-1, 1), and its gradient fades as a completion becomes
    unlikely.
    """

    name = "simper"
    learning_rates = rates_of(
        6e-7,
        "between the authors' rates: 3e-7 for Mistral base, 1e-6 for Llama 3 instruct",
        low=3e-7,
        high=1e-6,
    )
    length_normalized = True

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        inverse_perplexity = mean_tokens(scores.logp, scores.lengths).exp()
        return pair_losses(-pair_margin(inverse_perplexity, signal), scores, signal, inverse_perplexity)
