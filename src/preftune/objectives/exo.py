"""EXO: reverse KL from the policy's preference to the data's, over pairs or scored groups."""

import math
from dataclasses import dataclass

import torch

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import between, positive
from preftune.objectives.groupwise import group_log_softmax, group_losses, group_sum
from preftune.objectives.kinds import GroupObjective, PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import binary_kl
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Losses, Pairs, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class EXO(PairObjective):
    """The KL divergence that cDPO minimizes, with its arguments swapped: mode-seeking instead of
    mean-seeking.

        L = KL( Bernoulli(sigma(beta * D)) || Bernoulli(1 - e) ),   D = h(chosen) - h(rejected)

    Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", ICML 2024, arXiv
    2402.00856, equation 16 (EXO-pref, two completions). The authors' code uses the unnormalized log target
    (0, -10), which is e = 4.5e-5.

    Args:
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, in (0, 0.5); at 0 the divergence is infinite.
    """

    name = "exo"
    learning_rates = rates_of(1e-6, "the authors' code")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    label_smoothing: float = between(1e-3, "(0, 0.5)")

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        margin = pair_margin(rewards, signal)
        target = torch.full_like(margin, math.log((1 - self.label_smoothing) / self.label_smoothing))
        return pair_losses(binary_kl(margin, target), scores, signal, rewards)


@dataclass(frozen=True, kw_only=True)
class EXOGroup(GroupObjective):
    """The same reverse divergence over all scored completions of a prompt: InfoNCA's with its arguments
    swapped.

        L = sum_k q_k (log q_k - log p_k),   q = softmax_k(beta * h),   p = softmax_k(reward / beta_r)

    Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", ICML 2024, arXiv
    2402.00856, in the form of the authors' code (EXO-rw). Two completions whose rewards lie beta_r log((1 -
    e) / e) apart are EXO with smoothing e.

    Args:
        beta: strength of the pull to the reference, > 0; the authors' for summaries.
        reward_temperature: beta_r, > 0; the authors' for summaries. At 0 the divergence would be infinite.
    """

    name = "exo-group"
    learning_rates = rates_of(1e-6, "the authors' code")
    least_completions = 2
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.5)
    reward_temperature: float = positive(0.5)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        rewards = self.beta * log_ratio(scores)
        log_policy = group_log_softmax(rewards, signal)
        log_target = group_log_softmax(signal.reward.to(rewards.dtype) / self.reward_temperature, signal)
        per_unit = group_sum(log_policy.exp() * (log_policy - log_target), signal)
        return group_losses(per_unit, scores, signal, rewards)
