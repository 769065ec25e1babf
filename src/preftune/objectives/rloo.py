"""RLOO, and preference matching: REINFORCE whose baseline is the mean of a prompt's other completions."""

from dataclasses import dataclass

from preftune.objectives.advantages import leave_one_out
from preftune.objectives.base import ChosenFall, sum_tokens
from preftune.objectives.checks import between, not_negative
from preftune.objectives.clipping import sequence_ratio
from preftune.objectives.kinds import CompletionObjective
from preftune.objectives.learning_rates import our_rate, rates_of
from preftune.objectives.policy_gradient import clipped_losses, penalized_reward, policy_losses
from preftune.objectives.reinforce import REINFORCE, score_function_losses
from preftune.types import Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class RLOO(CompletionObjective):
    """REINFORCE with the mean of a prompt's other completions as baseline; optionally clipped, for stale
    samples.

        L = -A log pi(y),   A = R - mean of the others' R,   R = r - beta * h(y), held constant
        with clip:  L = -min( rho * A, clip(rho, 1 - clip, 1 + clip) * A ),   rho = pi(y) / mu(y)

    with h the log-ratio to the reference and mu the behavior policy, both of the whole completion. Ahmadian
    et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
    LLMs", ACL 2024, arXiv
    2402.14740; checked against a public implementation. The clip is TRL's and not the paper's.

    Args:
        beta: strength of the pull to the reference, >= 0, by a penalty in the reward; at 0 there is no
            reference. The default is the paper's, as TRL's index of papers has it; TRL's own is 0.05.
        clip: how far the ratio of whole completions may leave 1, in (0, 1), TRL's being 0.2; none: no ratio.
    """

    name = "rloo"
    learning_rates = rates_of(
        1e-6, "the paper (appendix C, as in TRL's index of papers); verl's scripts have the same"
    )
    least_completions = 2

    beta: float = not_negative(0.03)
    clip: float | None = between(None, "(0, 1)")

    @property
    def needs(self) -> frozenset[str]:
        reference = {"ref_logp"} if self.beta > 0 else set()
        return frozenset(reference | (set() if self.clip is None else {"behaviour_logp"}))

    @property
    def uses_steps(self) -> bool:
        """As `reinforce` does; a ratio of whole completions leaves no place for it."""
        return self.clip is None

    @property
    def chosen_fall(self) -> ChosenFall:
        return "possible" if self.clip is None else "prevented"

    @property
    def value_is_surrogate(self) -> bool:
        return self.beta > 0

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        if self.clip is None:
            return REINFORCE(baseline="leave_one_out", beta=self.beta)(scores, signal)
        advantage = leave_one_out(penalized_reward(scores, signal, self.beta), signal)
        per_unit, ratios = clipped_losses(sequence_ratio(scores), advantage, self.clip, self.clip)
        weight = self.weights(scores.lengths, signal)
        return policy_losses(
            per_unit, weight, scores, signal, advantage=advantage, beta=self.beta, extra=ratios
        )


@dataclass(frozen=True, kw_only=True)
class PreferenceMatching(CompletionObjective):
    """RLOO on the reward less the log-probability: entropy with a coefficient of one, and no reference.

        L = -A log pi(y),   A = R - mean of the others' R,   R = r - log pi(y), held constant

    Xiao et al., "On the Algorithmic Bias of Aligning Large Language Models with RLHF: Preference Collapse and
    Matching Regularization", 2024, arXiv 2405.16455, whose abstract states the regularizer: the negative
    log-probability of the response under the policy. The maximum of E[ r - log pi ] is softmax(r)
    over completions, so with rewards of a
    Bradley-Terry model the policy prefers as often as its annotators do. It is `rloo` at beta 1 with a
    reference that gives every completion the same.
    """

    name = "preference-matching"
    learning_rates = our_rate(1e-6, "the default of rloo, because no source with a rate for it could be read")
    least_completions = 2
    chosen_fall = "possible"
    value_is_surrogate = True

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        logp = sum_tokens(scores.logp, scores.lengths).detach()
        advantage = leave_one_out(signal.reward.to(logp.dtype) - logp, signal)
        return score_function_losses(advantage, scores, signal, beta=0.0)
