"""ERA: preferences at the temperature of an energy."""

from dataclasses import dataclass

from preftune.objectives.base import reference, sum_tokens
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.groupwise import all_pairs, group_metrics, reward_gap
from preftune.objectives.kinds import GroupPairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import binary_kl
from preftune.objectives.pairwise import pair_margin
from preftune.types import Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class ERA(GroupPairObjective):
    """The policy's preference between two completions fitted to the one that a Boltzmann distribution of the
    rewards would have.

        L = KL( Bernoulli(sigma(t)) || Bernoulli(sigma(log pi(y1) - log pi(y2))) )
        t = ( beta * (r(y1) - r(y2)) + gamma * (log ref(y1) - log ref(y2)) ) / (1 + gamma)

    Chennakesavalu et al., "Energy Rank Alignment: Using Preference Optimization to Search Chemical Space at
    Scale", 2024 (arXiv 2405.12961), with reward = -energy. The reference enters the target
    only: the optimum is proportional to (exp(beta * r) * ref^gamma)^(1 / (1 + gamma)). The unit is a pair;
    the pairs of a group share the weight of one.

    Args:
        beta: inverse temperature of the reward, > 0.
        gamma: strength of the pull to the reference, >= 0.
    """

    name = "era"
    learning_rates = rates_of(5e-6, "the authors")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(1.0)
    gamma: float = not_negative(1e-3)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        logp = sum_tokens(scores.logp, scores.lengths)
        ref_logp = sum_tokens(reference(scores), scores.lengths)
        pairs, weight = all_pairs(signal)
        gap = reward_gap(signal, pairs).to(logp.dtype)
        target = (self.beta * gap + self.gamma * pair_margin(ref_logp, pairs)) / (1 + self.gamma)
        per_unit = binary_kl(target, pair_margin(logp, pairs))
        return Losses(
            per_unit=per_unit, weight=weight.to(per_unit.dtype), metrics=group_metrics(scores, signal, logp)
        )
