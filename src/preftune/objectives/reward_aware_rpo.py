"""Reward-aware preference optimization: implicit preferences fitted to those that rewards imply."""

from dataclasses import dataclass
from typing import Literal

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.groupwise import all_pairs, group_metrics
from preftune.objectives.kinds import GroupPairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import binary_kl
from preftune.objectives.pairwise import pair_margin
from preftune.objectives.reward_distillation import pair_regression
from preftune.types import Losses, Rewards, TokenScores

Distance = Literal["backward_kl", "forward_kl", "squared"]


@dataclass(frozen=True, kw_only=True)
class RewardAwareRPO(GroupPairObjective):
    """The difference of two implicit rewards near eta times the difference of the rewards, over all pairs of
    a prompt's completions.

        a = beta * (h(y1) - h(y2)),   b = eta * (r(y1) - r(y2))
        backward_kl  L = KL( Bernoulli(sigma(b)) || Bernoulli(sigma(a)) )
        forward_kl   L = KL( Bernoulli(sigma(a)) || Bernoulli(sigma(b)) )
        squared      L = (a - b)^2

    Sun et al., "Reward-aware Preference Optimization: A Unified Mathematical Framework for Model Alignment",
    2025 (arXiv
    2502.00203), in the form and with the names of NVIDIA's code. squared is reward
    distillation, backward_kl is ERA with a reference, forward_kl is EXO with its smoothing set by the
    rewards. The unit is a pair; the pairs of a group share the weight of one.

    Args:
        beta: strength of the pull to the reference, > 0; 0.2 in NVIDIA's code.
        eta: scale of the rewards, > 0; 1 in NVIDIA's code.
        distance: how the two differences are compared.
    """

    name = "reward-aware-rpo"
    learning_rates = rates_of(9e-6, "the default of NVIDIA's code (NeMo-Aligner)")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.2)
    eta: float = positive(1.0)
    distance: Distance = "backward_kl"

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        rewards = self.beta * log_ratio(scores)
        scaled = self.eta * signal.reward.to(rewards.dtype)
        if self.distance == "squared":
            return pair_regression(rewards, scaled, scores, signal, rewards=rewards)
        pairs, weight = all_pairs(signal)
        implicit, target = pair_margin(rewards, pairs), pair_margin(scaled, pairs)
        per_unit = (
            binary_kl(target, implicit) if self.distance == "backward_kl" else binary_kl(implicit, target)
        )
        return Losses(
            per_unit=per_unit,
            weight=weight.to(per_unit.dtype),
            metrics=group_metrics(scores, signal, rewards),
        )
