"""REINFORCE: the log-probability of sampled completions, weighted by their reward less a baseline."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.objectives.advantages import centred, leave_one_out
from preftune.objectives.base import ChosenFall, Coupled, State, coupling_of, per_token, sum_tokens
from preftune.objectives.checks import check_between, not_negative
from preftune.objectives.credit import own_step, received_before, step_rewards
from preftune.objectives.kinds import CompletionObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.policy_gradient import penalized_reward, policy_losses, unit_weights
from preftune.types import Coupling, Float, Int, Losses, Rewards, StepView, TokenScores

Baseline = Literal["none", "mean", "leave_one_out", "moving_average"]


def score_function_losses(
    advantage: Float[Tensor, " A"], scores: TokenScores, signal: Rewards, beta: float
) -> Losses:
    """L = -sum_t A_t log pi(y_t), the mean over completions; its gradient is that of -E[A] where the policy
    itself sampled. A is one number for all tokens of a completion, or one for each.
    """
    if len(advantage) == len(scores.logp) and signal.step is not None:
        per_unit = -sum_tokens(advantage * scores.logp, scores.lengths)
    else:
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

    Where steps are rewarded, L = -sum_t A_t log pi(y_t) with one of

        return:  A_t = r - beta * h(y) - b - (rewards of the steps that ended before t)
        step:    A_t = o - beta * h(y) - b + (reward of the step of t),   o = r - (rewards of all steps)

    The first has the gradient of the expected reward. The second is equation 5 of Setlur et al., "Rewarding
    Progress", ICLR 2025, arXiv 2410.08146 (from a secondary source), where a step's reward is alpha times the
    advantage of a prover and o the outcome.

    Args:
        baseline: b. "none"; "mean" of the completions of the prompt, which shrinks the gradient by (K - 1) /
            K; "leave_one_out", the mean of the others; "moving_average" of the rewards of all past steps.
        beta: strength of the pull to the reference, >= 0, by a penalty in the reward; at 0 there is no
            reference.
        momentum: share of the old value that a step leaves in the moving average, in [0, 1), and only of it.
        credit: what tokens get of the rewards of steps: all that follows ("return") or their own step's ("step").
    """

    name = "reinforce"
    learning_rates = rates_of(
        1e-6,
        "verl's scripts for ReMax, which is REINFORCE with a greedy baseline; 5e-7 in OpenRLHF's script for "
        "reinforce_baseline",
        low=5e-7,
    )
    couples = frozenset()
    uses_steps = True

    baseline: Baseline = "leave_one_out"
    beta: float = not_negative(0.0)
    momentum: float | None = None
    credit: Literal["return", "step"] = "return"

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
    def wants_steps(self) -> bool:
        return self.credit == "step"

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
        reward = self._compared(step.signal.reward, step.signal, step.lengths)
        mean, baseline = reward.double().mean(), state["baseline"].to(reward.device)
        if state["steps"] == 0:
            baseline = mean
        updated = self.momentum * baseline + (1 - self.momentum) * mean
        return Coupling(whole={"baseline": baseline}), {"baseline": updated, "steps": state["steps"] + 1}

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        reward = self._compared(penalized_reward(scores, signal, self.beta), signal, scores.lengths)
        if self.baseline == "mean":
            advantage = centred(reward, signal)
        elif self.baseline == "leave_one_out":
            advantage = leave_one_out(reward, signal)
        elif self.baseline == "moving_average":
            advantage = reward - coupling_of(scores).whole["baseline"].to(reward.dtype)
        else:
            advantage = reward
        if signal.step is not None:
            each = per_token(advantage, scores.lengths)
            if self.credit == "step":
                advantage = each + own_step(signal, scores.lengths).to(each.dtype)
            else:
                advantage = each - received_before(signal, scores.lengths).to(each.dtype)
        return score_function_losses(advantage, scores, signal, self.beta)

    def _compared(
        self, reward: Float[Tensor, " C"], signal: Rewards, lengths: Int[Tensor, " C"]
    ) -> Float[Tensor, " C"]:
        """What the baseline is of: without the rewards of steps where tokens get their own step's alone."""
        if self.credit == "return" or signal.step is None:
            return reward
        return reward - sum_tokens(step_rewards(signal, lengths), lengths).to(reward.dtype)
