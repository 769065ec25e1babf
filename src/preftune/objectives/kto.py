"""KTO: single completions, compared with the policy's average log-ratio."""

from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, State, coupling_of, log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.coupling import check_state
from preftune.objectives.kinds import LabelObjective
from preftune.objectives.labelwise import anchored, label_losses
from preftune.objectives.learning_rates import rates_of
from preftune.types import Coupling, Labels, Losses, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class KTO(Coupled, LabelObjective):
    """A completion's log-ratio away from that of completions to other prompts, up or down according to its label.

        L = w_D * (1 - sigma(beta * (h - z0)))   of a preferred completion,
            w_U * (1 - sigma(beta * (z0 - h)))   of a dispreferred one,   z0 = max(0, mean over mismatched
            pairs of h)

    Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", ICML 2024, arXiv 2402.01306,
    equation
    7. z0 estimates the KL divergence to the reference from the log-ratios of completions under the prompt of
    another group, over the whole step and without a gradient. A step whose groups share one prompt has no
    such completions; z0 is then 0, its lower bound, as in a public implementation that does without it. With
    z0 = 0 it is APO-zero on single completions.

    Args:
        beta: strength of the pull to the reference, > 0.
        desirable_weight: factor w_D of the loss of preferred completions, > 0.
        undesirable_weight: factor w_U of the loss of dispreferred completions, > 0; the paper keeps w_D *
            number of preferred over w_U * number of dispreferred in [1, 4/3].
    """

    name = "kto"
    learning_rates = rates_of(5e-6, "the authors' code (HALOs); TRL's default is 1e-6", low=1e-6)
    needs = frozenset({"ref_logp", "coupling"})
    couples = frozenset({"mismatched"})

    beta: float = positive(0.1)
    desirable_weight: float = positive(1.0)
    undesirable_weight: float = positive(1.0)

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """z0, of all mismatched completions of the step; 0 where the step has one prompt only."""
        check_state(self.name, state, self.initial_state())
        if step.mismatched is None:
            return Coupling(whole={"z0": torch.zeros((), device=step.lengths.device)}), {}
        return Coupling(whole={"z0": log_ratio(step.mismatched).mean().clamp(min=0)}), {}

    def __call__(self, scores: TokenScores, signal: Labels) -> Losses:
        z0 = coupling_of(scores).whole["z0"]
        side = torch.where(signal.label == 1, self.desirable_weight, self.undesirable_weight)
        per_unit = side * anchored(self.beta * log_ratio(scores), signal, self.beta * z0)
        return label_losses(per_unit, scores, signal, {"kto/z0": z0[None]})
