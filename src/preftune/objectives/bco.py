"""BCO: single completions classified as good or bad against a running mean of the implicit reward."""

from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, State, coupling_of, log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.coupling import check_state, step_scores
from preftune.objectives.kinds import LabelObjective
from preftune.objectives.labelwise import label_losses
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.types import Coupling, Labels, Losses, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class BCO(Coupled, LabelObjective):
    """A completion's implicit reward above or below the mean of all implicit rewards so far, as its label
    says.

        L = -log sigma( label * (beta * h - delta) ),   delta = mean of beta * h over all completions seen

    Jung et al., "Binary Classifier Optimization for Large Language Model Alignment", 2024, arXiv 2404.04656,
    without its density ratio of prompts; checked against a public implementation, which, like this class,
    takes the step at hand into the mean before using it. On pairs with delta = 0 it is `bco-pair`.

    Args:
        beta: strength of the pull to the reference, > 0.
    """

    name = "bco"
    learning_rates = rates_of(5e-7, "the paper, as in TRL's index of papers")
    needs = frozenset({"ref_logp", "coupling"})
    value_is_surrogate = True

    beta: float = positive(0.01)

    def initial_state(self) -> dict[str, Tensor]:
        """Sum and number of the implicit rewards seen."""
        return {"sum": torch.zeros((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.int64)}

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """delta, of the labeled completions of this step and of all steps before."""
        check_state(self.name, state, self.initial_state())
        assert isinstance(step.signal, Labels)
        ratio = log_ratio(step_scores(step))
        rewards = self.beta * ratio[step.signal.label != 0].double()
        new = {
            "sum": state["sum"].to(rewards.device) + rewards.sum(),
            "count": state["count"].to(rewards.device) + len(rewards),
        }
        delta = new["sum"] / new["count"].clamp(min=1)
        return Coupling(whole={"delta": delta.to(ratio.dtype)}), new

    def __call__(self, scores: TokenScores, signal: Labels) -> Losses:
        delta = coupling_of(scores).whole["delta"]
        margin = self.beta * log_ratio(scores) - delta
        return label_losses(logistic(signal.label * margin), scores, signal, {"bco/delta": delta[None]})
