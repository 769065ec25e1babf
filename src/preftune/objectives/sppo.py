"""SPPO: each log-ratio regressed on its win rate."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import margin_target, pair_losses, pair_sides
from preftune.types import Float, Losses, Pairs, TokenScores


def anchored_squares(
    ratio: Float[Tensor, " C"], signal: Pairs, anchor: float | Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """(h(chosen) - anchor)^2 + (h(rejected) + anchor)^2."""
    chosen, rejected = pair_sides(ratio, signal)
    return (chosen - anchor).square() + (rejected + anchor).square()


@dataclass(frozen=True, kw_only=True)
class SPPO(PairObjective):
    """Each log-ratio regressed on its win rate: P for the chosen completion and 1 - P for the rejected one.

        L = scale * [ (h(chosen) - (P - 1/2) / beta)^2 + (h(rejected) + (P - 1/2) / beta)^2 ]

    P is the pair's probability; without one the win rates are 1 and 0. Wu et al., "Self-Play Preference
    Optimization for Language Model Alignment", 2024, arXiv 2405.00675, with eta = 1 / beta. The paper
    estimates the two win rates with a preference model over several samples, and takes as reference the
    policy at the start of each round of sampling.

    Args:
        beta: 1 / eta, > 0.
        scale: 0.5 in the paper, 1 in a popular implementation.
    """

    name = "sppo"
    learning_rates = rates_of(5e-7, "the authors' scripts, and TRL's index of papers")
    needs = frozenset({"ref_logp"})

    beta: float = positive(1e-3)
    scale: float = positive(0.5)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = log_ratio(scores)
        anchor = margin_target(signal, self.beta, ratio.dtype)
        return pair_losses(
            self.scale * anchored_squares(ratio, signal, anchor), scores, signal, self.beta * ratio
        )
