"""DPO: logistic loss on the difference of two log-ratios."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import check_between, check_positive
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import flip_chance, pair_losses, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class DPO:
    """The chosen completion's log-ratio above the rejected one's, by a logistic loss.

        L = -(1 - e) log sigma(beta * D) - e log sigma(-beta * D),   D = h(chosen) - h(rejected)

    with h the log-ratio of a completion to the reference, summed over tokens. Rafailov et al., "Direct
    Preference Optimization", NeurIPS 2023, arXiv 2305.18290, equation 7; e > 0 is their conservative form
    (cDPO), whose gradient vanishes at sigma(beta * D) = 1 - e. Where the data give the probability p that the
    chosen completion is the better one, the target is p in the place of 1: 1 - e becomes (1 - e) p + e (1 -
    p), and without smoothing p.

    Args:
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, the probability that a preference was labeled the wrong way round, in [0, 0.5).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_positive("dpo", beta=self.beta)
        check_between("dpo", "[0, 0.5)", label_smoothing=self.label_smoothing)

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
        flipped = flip_chance(signal, self.label_smoothing, rewards.dtype)
        per_unit = logistic(pair_margin(rewards, signal), flipped)
        return pair_losses(per_unit, scores, signal, rewards)
