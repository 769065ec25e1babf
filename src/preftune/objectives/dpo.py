"""DPO: logistic loss on the difference of two log-ratios."""

from dataclasses import dataclass

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import between, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import flip_chance, pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class DPO(PairObjective):
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

    name = "dpo"
    learning_rates = rates_of(
        1e-6,
        "the paper (appendix B, as in TRL's index of papers); 5e-7 in the authors' code, 3e-7 to 7e-7 in "
        "the baselines of SimPO's authors",
        low=3e-7,
    )
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    label_smoothing: float = between(0.0, "[0, 0.5)")

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        flipped = flip_chance(signal, self.label_smoothing, rewards.dtype)
        per_unit = logistic(pair_margin(rewards, signal), flipped)
        return pair_losses(per_unit, scores, signal, rewards)
