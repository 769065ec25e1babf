"""DPOP: DPO that does not let the chosen completion fall."""

from dataclasses import dataclass, replace

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_sides
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class DPOP(PairObjective):
    """DPO with a penalty wherever the chosen completion is less likely than under the reference.

        L = -log sigma( beta * ( D - lambda * max(0, -h(chosen)) ) ),   D = h(chosen) - h(rejected)

    Pal et al., "Smaug: Fixing Failure Modes of Preference Optimization with DPO-Positive", 2024, arXiv
    2402.13228; checked against a public implementation (the authors publish no training code); the defaults
    are those of public implementations.

    Args:
        beta: strength of the pull to the reference, > 0.
        penalty: lambda, the weight of the chosen completion's fall, >= 0; at 0 it is DPO.
    """

    name = "dpop"
    learning_rates = rates_of(5e-7, "the default of oat (oat/args.py), which has this loss")
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.3)
    penalty: float = not_negative(50.0)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = log_ratio(scores)
        chosen, rejected = pair_sides(ratio, signal)
        fall = (-chosen).clamp(min=0.0)
        per_unit = logistic(self.beta * (chosen - rejected - self.penalty * fall))
        losses = pair_losses(per_unit, scores, signal, self.beta * ratio)
        return replace(losses, metrics={**losses.metrics, "dpop/fall": fall.detach()})
