"""GDPO: geometric averaging of the two answers by a soft label."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import check_between, check_positive
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class GDPO:
    """DPO whose margin shrinks with the uncertainty of the preference.

        L = -log sigma( beta * (2p - 1) * D ),   D = h(chosen) - h(rejected)

    Furuta et al., "Geometric-Averaged Preference Optimization for Soft Preference Labels", NeurIPS 2024, arXiv
    2409.06691; formula not verified against the paper. There p is a soft label of each pair; pairs carry no such number
    here, so one p holds for all of them, and the loss is that of `dpo` with beta * (2p - 1). Unlike label smoothing it
    never pushes the margin back.

    Args:
        beta: strength of the pull to the reference, > 0.
        soft_label: p, the probability that the chosen completion is the better one, in (0.5, 1]; at 1 it is DPO.
    """

    beta: float = 0.1
    soft_label: float = 0.9

    def __post_init__(self) -> None:
        check_positive("gdpo", beta=self.beta)
        check_between("gdpo", "(0.5, 1]", soft_label=self.soft_label)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp"})

    @property
    def signal(self) -> type[Pairs]:
        return Pairs

    def weights(self, lengths: Int[Tensor, " C"], signal: Pairs) -> Float[Tensor, " U"]:
        """One per pair."""
        return pair_weights(signal)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        per_unit = logistic((2 * self.soft_label - 1) * pair_margin(rewards, signal))
        return pair_losses(per_unit, scores, signal, rewards)
