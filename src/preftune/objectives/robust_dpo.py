"""Robust DPO: DPO corrected for a known share of wrong labels."""

from dataclasses import dataclass

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import between, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class RobustDPO(PairObjective):
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

    name = "robust-dpo"
    learning_rates = rates_of(
        1e-6,
        "TRL's default for its pair losses (DPOConfig), which include this one; the paper's 1e-3 (TRL's index "
        "of papers) is far above what other preference objectives use",
    )
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    label_smoothing: float = between(0.1, "[0, 0.5)")

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        margin = pair_margin(rewards, signal)
        clean, flipped = (
            (1 - self.label_smoothing) * logistic(margin),
            self.label_smoothing * logistic(-margin),
        )
        per_unit = (clean - flipped) / (1 - 2 * self.label_smoothing)
        return pair_losses(per_unit, scores, signal, rewards)
