"""BPO: preference losses anchored at the policy that sampled the pairs."""

from dataclasses import dataclass
from typing import Literal

from preftune.objectives.base import behaviour_ratio
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import hinge, logistic
from preftune.objectives.pairwise import flip_chance, margin_target, pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores

BPOLink = Literal["logistic", "square", "hinge"]


@dataclass(frozen=True, kw_only=True)
class BPO(PairObjective):
    """DPO, IPO or the hinge loss with the sampling policy in the reference's place: a trust region that moves
    along.

        logistic  L = -P log sigma(beta * D) - (1 - P) log sigma(-beta * D)
        square    L = ( D - (P - 1/2) / beta )^2
        hinge     L = P max(0, 1 - beta * D) + (1 - P) max(0, 1 + beta * D)

    D = d(chosen) - d(rejected), d = log pi - log behavior, summed over tokens; P is the pair's probability,
    1 without one. Xu et al., "BPO: Staying Close to the Behavior LLM Creates Better Online LLM Alignment",
    EMNLP 2024, arXiv 2406.12168; checked against the authors' code. Soft P is our addition.

    Args:
        beta: strength of the pull to the sampling policy, > 0.
        link: what is made of the margin: DPO's, IPO's or RSO's loss.
    """

    name = "bpo"
    learning_rates = rates_of(5e-6, "a tenth of the 5e-5 in the authors' script for adapters")
    needs = frozenset({"behaviour_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    link: BPOLink = "logistic"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = behaviour_ratio(scores)
        rewards = self.beta * ratio
        if self.link == "square":
            per_unit = (pair_margin(ratio, signal) - margin_target(signal, self.beta, ratio.dtype)).square()
        else:
            link = logistic if self.link == "logistic" else hinge
            margin, flipped = pair_margin(rewards, signal), flip_chance(signal, 0.0, ratio.dtype)
            per_unit = (1 - flipped) * link(margin) + flipped * link(-margin)
        return pair_losses(per_unit, scores, signal, rewards)
