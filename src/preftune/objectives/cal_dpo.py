"""Cal-DPO: DPO whose implicit rewards are also calibrated to a scale."""

from dataclasses import dataclass

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.objectives.sppo import anchored_squares
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class CalDPO(PairObjective):
    """A logistic loss on the log-ratios plus SPPO's pull of each of them to its own value.

        L = -log sigma(D) + c * [ (h(chosen) - 1 / (2 beta))^2 + (h(rejected) + 1 / (2 beta))^2 ]

    Xiao et al., "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment", NeurIPS
    2024 (arXiv
    2412.14516), as in the authors' code: no beta in the first term, and c = 0.5. The paper's algorithm 1 has
    c = 1.

    Args:
        beta: sets the values +-1 / (2 beta) that log-ratios are pulled to, > 0.
        calibration_weight: c, >= 0.
    """

    name = "cal-dpo"
    learning_rates = rates_of(5e-7, "the authors")
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.002)
    calibration_weight: float = not_negative(0.5)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = log_ratio(scores)
        calibration = anchored_squares(ratio, signal, 1 / (2 * self.beta))
        per_unit = logistic(pair_margin(ratio, signal)) + self.calibration_weight * calibration
        return pair_losses(per_unit, scores, signal, self.beta * ratio)
