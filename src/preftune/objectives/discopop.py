"""DiscoPOP: a loss found by a language model, between logistic and exponential."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import between, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class DiscoPOP(PairObjective):
    """A logistic loss where the pair is ordered wrongly, blending into an exponential one where it is ordered
    rightly.

        L = (1 - g) * (-log sigma(rho)) + g * exp(-rho),   rho = beta * D,   g = sigma(rho / tau)

    Lu et al., "Discovering Preference Optimization Algorithms with and for Large Language Models", NeurIPS
    2024, arXiv
    2406.08414, equation 5 ("log-ratio modulated loss"). g carries gradient; the loss rises with rho for a
    while near 0.

    Args:
        beta: strength of the pull to the reference, > 0.
        tau: width of the blend, in (0, 1]; above 1 the exponential would win for wrongly ordered pairs.
    """

    name = "discopop"
    learning_rates = rates_of(5e-7, "the paper (appendix B.1, as in TRL's index of papers)")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.05)
    tau: float = between(0.05, "(0, 1]")

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        margin = pair_margin(rewards, signal)
        steep = margin / self.tau
        # sigma(rho / tau) * exp(-rho) in one exponent: the factors alone are 0 and infinity for wrongly
        # ordered pairs
        per_unit = torch.sigmoid(-steep) * logistic(margin) + (logsigmoid(steep) - margin).exp()
        return pair_losses(per_unit, scores, signal, rewards)
