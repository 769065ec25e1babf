"""GRPO and what followed: the same clipped loss with other advantages, ratios and averages."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.objectives.advantages import centred, group_deviation, reward_to_go, standardized
from preftune.objectives.base import mean_tokens, per_token, reference, sum_tokens
from preftune.objectives.checks import between, not_negative, positive
from preftune.objectives.clipping import kl_estimate, mean_ratio, token_ratio
from preftune.objectives.credit import outcome_reward, standardized_steps
from preftune.objectives.groupwise import group_index
from preftune.objectives.kinds import CompletionObjective, RewardObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.policy_gradient import clipped_losses, policy_losses
from preftune.types import Float, Int, Losses, Rewards, TokenScores

LossKL = Literal["k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class GRPO(CompletionObjective):
    """PPO's clipped loss without a critic: rewards standardized within the completions of a prompt.

        L = (1/n) sum_t [ -min( rho_t A, clip(rho_t, 1 - clip, 1 + clip) A ) + beta * k3_t ],   rho_t =
        pi(y_t) / mu(y_t) A = (r - mean) / (std + eps) of the group,   k3_t = e^-x - 1 + x,   x = log pi(y_t)
        - log ref(y_t)

    with mu the behavior policy, the mean over completions. Shao et al., "DeepSeekMath", 2024, arXiv
    2402.03300; checked against public implementations. Where steps are rewarded, A_t of a token is the sum of the
    rewards of the steps that end at it or later, standardized over all steps of the group (section 4.1.3),
    and r is what is left of the completion's reward.

    Args:
        beta: weight of the KL term, >= 0; at 0 there is no reference. The default is the paper's (from
            memory).
        clip: how far a ratio may leave 1, in (0, 1).
        eps: added to the standard deviation, > 0; TRL's. The paper has none.
        kl: estimator in the loss. k3, the paper's, has the expected gradient of KL(ref || pi); k2 that of
            KL(pi || ref).
    """

    name = "grpo"
    learning_rates = rates_of(1e-6, "verl's scripts and TRL's default")
    uses_steps = True
    least_completions = 2
    length_normalized = True

    beta: float = not_negative(0.04)
    clip: float = between(0.2, "(0, 1)")
    eps: float = positive(1e-4)
    kl: LossKL = "k3"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 0 and self.kl != "k3":
            raise ConfigError(
                "grpo: kl has no effect with beta 0", got=self.kl, do="Leave it out, or set beta"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"behaviour_logp", "ref_logp"} if self.beta > 0 else {"behaviour_logp"})

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        outcome = outcome_reward(signal, scores.lengths).to(scores.logp.dtype)
        advantage = standardized(outcome, signal, self.eps)
        each = per_token(advantage, scores.lengths)
        if signal.step is not None:
            steps = standardized_steps(signal, scores.lengths, self.eps).to(each.dtype)
            advantage = each = each + reward_to_go(steps, scores.lengths, 1.0)
        loss, ratios = clipped_losses(token_ratio(scores), each, self.clip, self.clip)
        if self.beta > 0:
            loss = loss + self.beta * kl_estimate(self.kl, scores.logp - reference(scores))
        per_unit, weight = mean_tokens(loss, scores.lengths), self.weights(scores.lengths, signal)
        return policy_losses(
            per_unit, weight, scores, signal, advantage=advantage, beta=self.beta, extra=ratios
        )


@dataclass(frozen=True, kw_only=True)
class DrGRPO(CompletionObjective):
    """GRPO without its two divisions: by the standard deviation of the rewards, and by the length of the
    completion.

        L = (1/max_tokens) sum_t -min( rho_t A, clip(rho_t, 1 - clip, 1 + clip) A ),   A = r - mean of the
        group

    with rho_t = pi(y_t) / mu(y_t), the mean over completions. Liu et al., "Understanding R1-Zero-Like
    Training: A Critical Perspective", 2025, arXiv 2503.20783; checked against the authors' code. There is no
    KL term.

    Args:
        clip: how far a ratio may leave 1, in (0, 1).
        max_tokens: the same divisor for all completions, > 0; the sampler's budget of a completion, whose
            default is this.
    """

    name = "dr-grpo"
    learning_rates = rates_of(1e-6, "the authors' scripts")
    least_completions = 2
    needs = frozenset({"behaviour_logp"})

    clip: float = between(0.2, "(0, 1)")
    max_tokens: int = positive(128)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        advantage = centred(signal.reward.to(scores.logp.dtype), signal)
        loss, ratios = clipped_losses(
            token_ratio(scores), per_token(advantage, scores.lengths), self.clip, self.clip
        )
        per_unit, weight = (
            sum_tokens(loss, scores.lengths) / self.max_tokens,
            self.weights(scores.lengths, signal),
        )
        return policy_losses(per_unit, weight, scores, signal, advantage=advantage, extra=ratios)


@dataclass(frozen=True, kw_only=True)
class DAPO(RewardObjective):
    """GRPO with a wider clip upward, the mean over all tokens of the step, and no groups whose rewards are
    all equal.

        L_t = -min( rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A ),   A = (r - mean) / (std + eps) of
        the group

    with rho_t = pi(y_t) / mu(y_t). A group with equal rewards has no weight, neither above nor below the
    line. Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", 2025, arXiv
    2503.14476; checked against public implementations. Drawing more groups in the place of those, leaving out
    truncated completions and the reward for length are the sampler's, not the loss's.

    Args:
        clip_low: how far a ratio may fall below 1, in (0, 1).
        clip_high: how far a ratio may rise above 1, > 0.
        eps: added to the standard deviation, > 0; TRL's. The paper has none.
    """

    name = "dapo"
    learning_rates = rates_of(1e-6, "verl's scripts; 5e-7 in OpenRLHF's", low=5e-7)
    least_completions = 2
    needs = frozenset({"behaviour_logp"})

    clip_low: float = between(0.2, "(0, 1)")
    clip_high: float = positive(0.28)
    eps: float = positive(1e-4)

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " U"]:
        """One per token of a group whose rewards differ, else zero."""
        index, _ = group_index(signal)
        told_apart = group_deviation(signal.reward, signal) > 0
        return per_token(told_apart[index].to(torch.get_default_dtype()), lengths)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        advantage = standardized(signal.reward.to(scores.logp.dtype), signal, self.eps)
        per_unit, ratios = clipped_losses(
            token_ratio(scores), per_token(advantage, scores.lengths), self.clip_low, self.clip_high
        )
        weight = self.weights(scores.lengths, signal)
        return policy_losses(per_unit, weight, scores, signal, advantage=advantage, extra=ratios)


@dataclass(frozen=True, kw_only=True)
class GSPO(CompletionObjective):
    """GRPO with one ratio for the whole completion: the geometric mean of its tokens' ratios.

        L = -min( s A, clip(s, 1 - clip_low, 1 + clip_high) A ),   s = (pi(y) / mu(y))^(1/n)
        A = (r - mean) / (std + eps) of the group

    with mu the behavior policy, the mean over completions. Zheng et al., "Group Sequence Policy
    Optimization", 2025, arXiv 2507.18071; checked against public implementations. A mean moves far less than
    a token's ratio, hence the narrow clip. There is no KL term.

    Args:
        clip_low: how far the ratio may fall below 1, in (0, 1).
        clip_high: how far the ratio may rise above 1, > 0.
        eps: added to the standard deviation, > 0; TRL's. The paper has none.
    """

    name = "gspo"
    learning_rates = rates_of(1e-6, "verl's scripts")
    least_completions = 2
    needs = frozenset({"behaviour_logp"})
    length_normalized = True

    clip_low: float = between(3e-4, "(0, 1)")
    clip_high: float = positive(4e-4)
    eps: float = positive(1e-4)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        advantage = standardized(signal.reward.to(scores.logp.dtype), signal, self.eps)
        per_unit, ratios = clipped_losses(mean_ratio(scores), advantage, self.clip_low, self.clip_high)
        weight = self.weights(scores.lengths, signal)
        return policy_losses(per_unit, weight, scores, signal, advantage=advantage, extra=ratios)
