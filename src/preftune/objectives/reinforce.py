"""REINFORCE: the log-probability of sampled completions, weighted by their reward less a baseline."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.objectives.advantages import centred, leave_one_out
from preftune.objectives.base import ChosenFall, Coupled, State, coupling_of, sum_tokens
from preftune.objectives.checks import check_between, not_negative
from preftune.objectives.kinds import CompletionObjective
from preftune.objectives.policy_gradient import penalized_reward, policy_losses, unit_weights
from preftune.types import Coupling, Float, Losses, Rewards, StepView, TokenScores

Baseline = Literal["none", "mean", "leave_one_out", "moving_average"]


def score_function_losses(
    advantage: Float[Tensor, " C"], scores: TokenScores, signal: Rewards, beta: float
) -> Losses:
    """L = -A log pi(y), the mean over completions; its gradient is that of -E[A] where the policy itself
    sampled.
    """
    per_unit = -advantage * sum_tokens(scores.logp, scores.lengths)
    weight = unit_weights(len(scores.lengths), scores.lengths)
    return policy_losses(per_unit, weight, scores, signal, advantage=advantage, beta=beta)


@dataclass(frozen=True, kw_only=True)
class REINFORCE(Coupled, CompletionObjective):
    """Each sampled completion's log-probability, weighted by its reward less a baseline.

        L = -A log pi(y),   A = r - beta * h(y) - b, held constant

    with h the log-ratio of a completion to the reference, summed over tokens. Williams, "Simple Statistical
    Gradient-Following Algorithms for Connectionist Reinforcement Learning", Machine Learning 1992. Valid only
    for completions that the policy sampled itself: there is no correction for another sampler.

    Args:
        baseline: b. "none"; "mean" of the completions of the prompt, which shrinks the gradient by (K - 1) /
            K; "leave_one_out", the mean of the others; "moving_average" of the rewards of all past steps.
        beta: strength of the pull to the reference, >= 0, by a penalty in the reward; at 0 there is no
            reference.
        momentum: share of the old value that a step leaves in the moving average, in [0, 1), and only of it.
    """

    name = "reinforce"
    couples = frozenset()

    baseline: Baseline = "leave_one_out"
    beta: float = not_negative(0.0)
    momentum: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline == "moving_average":
            check_between(
                "reinforce", "[0, 1)", momentum=math.nan if self.momentum is None else self.momentum
            )
        elif self.momentum is not None:
            raise ConfigError(
                f"reinforce: momentum has no effect with baseline {self.baseline}",
                got=self.momentum,
                expected="none",
                do="Leave it out, or set baseline to moving_average",
            )

    @property
    def needs(self) -> frozenset[str]:
        reference = {"ref_logp"} if self.beta > 0 else set()
        return frozenset(reference | ({"coupling"} if self.baseline == "moving_average" else set()))

    def initial_state(self) -> dict[str, Tensor]:
        return {"baseline": torch.zeros((), dtype=torch.float64), "steps": torch.zeros((), dtype=torch.int64)}

    @property
    def least_completions(self) -> int:
        return 2 if self.baseline in ("mean", "leave_one_out") else 1

    @property
    def chosen_fall(self) -> ChosenFall:
        centred_in_group = self.baseline in ("mean", "leave_one_out")
        follows_rewards = self.baseline == "moving_average" and self.beta == 0
        return "possible" if centred_in_group or follows_rewards else "prevented"

    @property
    def value_is_surrogate(self) -> bool:
        return self.beta > 0

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """The average of past steps, which knows nothing of this one; the first step has only its own mean."""
        assert isinstance(step.signal, Rewards) and self.momentum is not None
        mean, baseline = step.signal.reward.double().mean(), state["baseline"].to(step.signal.reward.device)
        if state["steps"] == 0:
            baseline = mean
        updated = self.momentum * baseline + (1 - self.momentum) * mean
        return Coupling(whole={"baseline": baseline}), {"baseline": updated, "steps": state["steps"] + 1}

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        reward = penalized_reward(scores, signal, self.beta)
        if self.baseline == "mean":
            advantage = centred(reward, signal)
        elif self.baseline == "leave_one_out":
            advantage = leave_one_out(reward, signal)
        elif self.baseline == "moving_average":
            advantage = reward - coupling_of(scores).whole["baseline"].to(reward.dtype)
        else:
            advantage = reward
        return score_function_losses(advantage, scores, signal, self.beta)
