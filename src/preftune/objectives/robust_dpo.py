"""Robust DPO: DPO corrected for a known share of wrong labels."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import check_between, check_positive
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class RobustDPO:
    """An unbiased estimate of DPO's loss on clean labels, from labels of which a known share is wrong.

        L = ( -(1 - e) log sigma(beta * D) + e log sigma(-beta * D) ) / (1 - 2e),   D = h(chosen) -
        h(rejected)

    Chowdhury, Kini and Natarajan, "Provably Robust DPO", ICML 2024, arXiv 2403.00409; checked against a
    public implementation. Where cDPO (`dpo` with label_smoothing) adds the loss of the flipped pair, this one
    subtracts it: a cross-entropy with the target (1 - e) / (1 - 2e) > 1, which has no minimum in D and falls
    without bound.

    Args:
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, the probability that a preference was labeled the wrong way round, in [0, 0.5);
            at 0 it is DPO.
    """

    beta: float = 0.1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_positive("robust-dpo", beta=self.beta)
        check_between("robust-dpo", "[0, 0.5)", label_smoothing=self.label_smoothing)

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
        margin = pair_margin(rewards, signal)
        clean, flipped = (
            (1 - self.label_smoothing) * logistic(margin),
            self.label_smoothing * logistic(-margin),
        )
        per_unit = (clean - flipped) / (1 - 2 * self.label_smoothing)
        return pair_losses(per_unit, scores, signal, rewards)
