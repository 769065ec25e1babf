"""SimPER: inverse perplexities, and nothing to tune."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import mean_tokens
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class SimPER:
    """The inverse perplexity of the chosen completion up, that of the rejected one down; no reference, no
    hyper-parameter.

        L = -exp(lpbar(chosen)) + exp(lpbar(rejected)),   lpbar = log pi(y) / |y|

    Xiao et al., "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters", ICLR 2025
    (arXiv
    2502.00883, id from memory). The loss lies in (-1, 1), and its gradient fades as a completion becomes
    unlikely.
    """

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
        inverse_perplexity = mean_tokens(scores.logp, scores.lengths).exp()
        return pair_losses(-pair_margin(inverse_perplexity, signal), scores, signal, inverse_perplexity)
