"""Reward distillation: implicit rewards regressed on those of a reward model."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.groupwise import all_pairs, group_metrics
from preftune.objectives.kinds import GroupPairObjective
from preftune.objectives.learning_rates import our_rate
from preftune.objectives.pairwise import pair_margin
from preftune.types import Float, Losses, Rewards, TokenScores


def pair_regression(
    implicit: Float[Tensor, " C"],
    target: Float[Tensor, " C"],
    scores: TokenScores,
    signal: Rewards,
    *,
    rewards: Float[Tensor, " C"],
) -> Losses:
    """Squared gap between a difference of two implicit rewards and that of their targets, for all pairs of
    each group.
    """
    pairs, weight = all_pairs(signal)
    per_unit = (pair_margin(implicit, pairs) - pair_margin(target, pairs)).square()
    return Losses(
        per_unit=per_unit, weight=weight.to(per_unit.dtype), metrics=group_metrics(scores, signal, rewards)
    )


@dataclass(frozen=True, kw_only=True)
class RewardDistillation(GroupPairObjective):
    """The difference of two implicit rewards regressed on the difference of the rewards, over all pairs of a
    prompt's completions.

        L = ( beta * (h(y1) - h(y2)) - (r(y1) - r(y2)) )^2

    Fisch et al., "Robust Preference Optimization through Reward Model Distillation", 2024 (arXiv 2405.19316):
    formula not verified against the paper, whose abstract was read. Its pessimistic form over an ensemble of reward
    models is not here. The unit is a pair; the pairs of a group share the weight of one, so each prompt with
    two completions or more counts the same.

    Args:
        beta: nats of reward per nat of log-ratio, > 0: the rewards are fitted as they are.
    """

    name = "reward-distillation"
    learning_rates = our_rate(1e-6, "the default of dpo, because no source with a rate for it could be read")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        rewards = self.beta * log_ratio(scores)
        return pair_regression(rewards, signal.reward.to(rewards.dtype), scores, signal, rewards=rewards)
