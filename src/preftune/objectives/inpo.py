"""INPO: one step of no-regret learning against oneself, as a regression on preferences."""

from dataclasses import dataclass

from preftune.objectives.base import behaviour, reference, sum_tokens
from preftune.objectives.checks import check_between, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import margin_target, pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class INPO(PairObjective):
    """IPO with sums whose anchor lies between the reference and the policy that sampled the pair.

        L = ( g(chosen) - g(rejected) - (P - 1/2) / eta )^2
        g = log pi - (tau / eta) log ref - (1 - tau / eta) log behavior

    P is the pair's probability; without one it is 1, and the target 1 / (2 eta). Zhang et al., "Iterative
    Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning", ICLR 2025, arXiv
    2407.00617; checked against the code of COMAL (yale-nlp/COMAL, losses.py), the soft target derived here.
    At tau = eta it would be IPO against the reference, at tau = 0 IPO against the sampling policy.

    Args:
        eta: inverse step size, > 0.
        tau: strength of the pull to the reference, in (0, eta).
    """

    name = "inpo"
    learning_rates = rates_of(5e-7, "COMAL's code for this loss (inpo.py)")
    needs = frozenset({"ref_logp", "behaviour_logp"})
    chosen_fall = "possible"

    eta: float = positive(7.5e-3)
    tau: float = 2.5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("inpo", f"(0, {self.eta})", tau=self.tau)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        share = self.tau / self.eta
        anchor = share * reference(scores) + (1 - share) * behaviour(scores)
        ratio = sum_tokens(scores.logp - anchor, scores.lengths)
        per_unit = (pair_margin(ratio, signal) - margin_target(signal, self.eta, ratio.dtype)).square()
        return pair_losses(per_unit, scores, signal, self.eta * ratio)
