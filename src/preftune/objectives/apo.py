"""APO: preferences anchored to the reference, so that it is decided which completion moves where."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import Objective, log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.labelwise import anchored, label_losses, label_weights
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import pair_losses, pair_sides, pair_weights
from preftune.types import Float, Int, Labels, Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class APOZero(Objective):
    """The chosen completion up and the rejected one down, each against the reference. For data better than
    the model.

        L = 1 - sigma(beta * h(chosen)) + sigma(beta * h(rejected))

    D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions", 2024, arXiv
    2408.06266, equation 7; checked against a public implementation. It is a sum over completions, so it needs
    no pairs: KTO with a threshold of 0.

    Args:
        beta: strength of the pull to the reference, > 0.
        unit: "pair", or "completion" to learn from single labels, 1 - sigma(label * beta * h) each.
    """

    name = "apo-zero"
    learning_rates = rates_of(2e-7, "the paper (section 5.2, as in TRL's index of papers)")
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.1)
    unit: Literal["pair", "completion"] = "pair"

    @property
    def signal(self) -> type[Pairs] | type[Labels]:
        return Pairs if self.unit == "pair" else Labels

    def weights(self, lengths: Int[Tensor, " C"], signal: Pairs | Labels) -> Float[Tensor, " U"]:
        """One per pair, or per labeled completion."""
        if isinstance(signal, Pairs):
            return pair_weights(signal)
        return label_weights(signal)

    def __call__(self, scores: TokenScores, signal: Pairs | Labels) -> Losses:
        rewards = self.beta * log_ratio(scores)
        if isinstance(signal, Pairs):
            chosen, rejected = pair_sides(rewards, signal)
            return pair_losses(torch.sigmoid(-chosen) + torch.sigmoid(rejected), scores, signal, rewards)
        return label_losses(anchored(rewards, signal), scores, signal)


@dataclass(frozen=True, kw_only=True)
class APODown(PairObjective):
    """The chosen completion down and the rejected one further down. For data worse than the model.

        L = sigma(beta * h(chosen)) + 1 - sigma(beta * D),   D = h(chosen) - h(rejected)

    D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions", 2024, arXiv
    2408.06266, equation 8; checked against a public implementation.

    Args:
        beta: strength of the pull to the reference, > 0.
    """

    name = "apo-down"
    learning_rates = rates_of(2e-7, "the paper (section 5.2, as in TRL's index of papers)")
    needs = frozenset({"ref_logp"})
    chosen_fall = "intended"

    beta: float = positive(0.1)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        chosen, rejected = pair_sides(rewards, signal)
        per_unit = torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
        return pair_losses(per_unit, scores, signal, rewards)
