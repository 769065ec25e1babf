"""REBEL: differences of rewards regressed on how far the policy has moved from its own samples."""

from dataclasses import dataclass

from preftune.objectives.base import behaviour, behaviour_ratio, reference, sum_tokens
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import GroupPairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.reward_distillation import pair_regression
from preftune.types import Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class REBEL(GroupPairObjective):
    """The change of a log-probability since sampling regressed on eta times the reward, over all pairs of a
    prompt's completions.

        L = ( (d(y1) - d(y2)) - eta * (R(y1) - R(y2)) )^2,   d = log pi - log behavior
        R = r - kl_coef * (log behavior - log ref)

    Gao et al., "REBEL: Reinforcement Learning via Regressing Relative Rewards", NeurIPS 2024, arXiv
    2404.16767, in the scale of the authors' code; the paper divides the bracket by eta, which divides the
    loss by eta^2. With the reference as behavior policy, kl_coef 0 and eta = 1 / beta it is reward distillation
    over beta^2. The unit is a pair; the pairs of a group share the weight of one.

    Args:
        eta: nats of log-ratio per unit of reward, > 0; the authors' code has 1, and up to 1e6 for small
            rewards.
        kl_coef: weight of the KL divergence to the reference in the reward, >= 0. At 0 no reference is
            needed.
    """

    name = "rebel"
    learning_rates = rates_of(3e-6, "the authors")
    chosen_fall = "possible"

    eta: float = positive(1.0)
    kl_coef: float = not_negative(0.05)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"behaviour_logp", "ref_logp"} if self.kl_coef > 0 else {"behaviour_logp"})

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        moved = behaviour_ratio(scores)
        target = self.eta * signal.reward.to(moved.dtype)
        if self.kl_coef > 0:
            sampled_ratio = sum_tokens(behaviour(scores) - reference(scores), scores.lengths)
            target = target - self.eta * self.kl_coef * sampled_ratio
        return pair_regression(moved, target, scores, signal, rewards=moved / self.eta)
