"""NCA and InfoNCA: noise contrast over the completions of a prompt, with rewards as soft labels."""

from dataclasses import dataclass

import torch

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.groupwise import group_log_softmax, group_losses, group_sum, reward_softmax
from preftune.objectives.kinds import GroupObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.types import Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class InfoNCA(GroupObjective):
    """Cross-entropy of a softmax over the implicit rewards of a prompt's completions with one over their
    rewards.

        L = -sum_k p_k log softmax_k(beta * h),   p = softmax_k(reward / alpha)

    Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", NeurIPS 2024, arXiv
    2402.05369. With two completions and alpha -> 0 it is DPO. The authors' code divides scores by alpha too; it
    also adds 0.01 to the top reward, which is left out here.

    Args:
        beta: strength of the pull to the reference, > 0.
        reward_temperature: alpha, >= 0. At 0 the target is the best completion of the group: the form for
            pairs, whose rewards are 1 and 0.
    """

    name = "infonca"
    learning_rates = rates_of(5e-7, "a tenth of the authors' 5e-6, which is of adapters")
    least_completions = 2
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.01)
    reward_temperature: float = not_negative(1.0)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        rewards = self.beta * log_ratio(scores)
        target = reward_softmax(signal, self.reward_temperature, rewards.dtype)
        per_unit = -group_sum(target * group_log_softmax(rewards, signal), signal)
        return group_losses(per_unit, scores, signal, rewards)


@dataclass(frozen=True, kw_only=True)
class NCA(GroupObjective):
    """Each completion classified against noise on its own, so that absolute likelihoods matter and not only
    differences.

        L = -sum_k p_k log sigma(beta * h_k) - (1/K) sum_k log sigma(-beta * h_k),   p = softmax_k(reward /
        alpha)

    Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", NeurIPS 2024, arXiv
    2402.05369. For a pair with alpha -> 0: -log sigma(r_w) - 0.5 log sigma(-r_w) - 0.5 log sigma(-r_l). The
    authors' code also adds 0.01 to the top reward, which is left out here.

    Args:
        beta: strength of the pull to the reference, > 0.
        reward_temperature: alpha, >= 0. At 0 the target is the best completion of the group: the form for
            pairs, whose rewards are 1 and 0.
    """

    name = "nca"
    learning_rates = rates_of(5e-7, "a tenth of the authors' 5e-6, which is of adapters")
    least_completions = 2
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.01)
    reward_temperature: float = not_negative(1.0)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        rewards = self.beta * log_ratio(scores)
        target = reward_softmax(signal, self.reward_temperature, rewards.dtype)
        size = group_sum(torch.ones_like(rewards), signal)
        per_unit = (
            group_sum(target * logistic(rewards), signal) + group_sum(logistic(-rewards), signal) / size
        )
        return group_losses(per_unit, scores, signal, rewards)
