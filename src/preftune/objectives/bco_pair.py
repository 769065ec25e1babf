"""BCO on pairs: two binary classifications with a fixed threshold."""

from dataclasses import dataclass

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_sides
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class BCOPair(PairObjective):
    """The chosen completion classified as good and the rejected one as bad, each on its own.

        L = -log sigma(beta * h(chosen)) - log sigma(-beta * h(rejected))

    After Jung et al., "Binary Classifier Optimization for Large Language Model Alignment", 2024, arXiv
    2404.04656, without the running mean that BCO subtracts from the implicit reward: the threshold is 0.
    Checked against a public implementation.

    Args:
        beta: strength of the pull to the reference, > 0.
    """

    name = "bco-pair"
    learning_rates = rates_of(5e-7, "TRL's index of papers, for the paper of BCO with this loss")
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.01)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        chosen, rejected = pair_sides(rewards, signal)
        return pair_losses(logistic(chosen) + logistic(-rejected), scores, signal, rewards)
