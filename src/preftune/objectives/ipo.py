"""IPO: squared loss on the difference of log-ratios."""

from dataclasses import dataclass
from typing import Literal

from preftune.objectives.base import log_ratio, mean_log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import margin_target, pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class IPO(PairObjective):
    """The difference of two log-ratios regressed on a fixed margin, which it must not exceed either.

        L = ( D - (P - 1/2) / tau )^2,   D = h(chosen) - h(rejected)              (reduction sum)
                                         D = hbar(chosen) - hbar(rejected)        (reduction mean, hbar = h /
                                         |y|)

    P is the pair's probability; without one it is 1, and the target 1 / (2 tau). Azar et al., "A General
    Theoretical Paradigm to Understand Learning from Human Preferences", AISTATS 2024, arXiv 2310.12036,
    equation 17; checked against public implementations. The paper writes sums; its results are said to come
    from means, which most implementations use. The two want very different tau. On the policy's own samples,
    with soft P and sums, it is the online IPO of Zhou et al., 2025, arXiv 2503.08942.

    Args:
        tau: strength of the pull to the reference, > 0.
        reduction: whether a log-ratio is the mean over tokens or their sum.
    """

    name = "ipo"
    learning_rates = rates_of(
        5e-7,
        "the settings for IPO of alignment-handbook (recipes/pref_align_scan), COMAL (ipo.py) and RainbowPO; "
        "TRL's default is 1e-6, and the paper's 1e-2 (TRL's index of papers) is of bandits",
        high=1e-6,
    )
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    tau: float = positive(0.1)
    reduction: Literal["mean", "sum"] = "mean"

    @property
    def length_normalized(self) -> bool:
        return self.reduction == "mean"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = log_ratio(scores) if self.reduction == "sum" else mean_log_ratio(scores)
        per_unit = (pair_margin(ratio, signal) - margin_target(signal, self.tau, ratio.dtype)).square()
        return pair_losses(per_unit, scores, signal, self.tau * ratio)
