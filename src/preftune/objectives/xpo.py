"""XPO: online DPO with a bonus for leaving the reference's samples behind."""

from dataclasses import dataclass

from preftune.objectives.base import Opponent, log_ratio, sum_tokens
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_sides, pairs_of
from preftune.types import Hybrid, Losses, TokenScores

REFERENCE = 2  # of Hybrid.source


@dataclass(frozen=True, kw_only=True)
class XPO(PairObjective):
    """DPO on pairs of a sample of the policy and one of the reference, in which the reference's sample is
    pushed down.

        L = -log sigma(beta * D) + alpha * log pi(y_ref),   D = h(chosen) - h(rejected)

    y_ref is that completion of the pair, chosen or rejected, which the reference wrote; the sign of alpha is
    a plus, so its likelihood falls: optimism. Xie et al., "Exploratory Preference Optimization: Harnessing
    Implicit Q*-Approximation for Sample-Efficient RLHF", 2024, arXiv 2405.21046; checked against a public
    implementation. A pair without such a completion is DPO's. Completions in no pair play no part.

    Args:
        beta: strength of the pull to the reference, > 0.
        alpha: weight of the exploration bonus per nat, >= 0; at 0 it is DPO.
    """

    name = "xpo"
    learning_rates = rates_of(5e-7, "TRL's online trainers")
    needs = frozenset({"ref_logp"})
    signal = Hybrid
    chosen_fall = "possible"

    beta: float = positive(0.1)
    alpha: float = not_negative(1e-5)

    @property
    def opponents(self) -> tuple[Opponent, ...]:
        return ("reference",)

    def __call__(self, scores: TokenScores, signal: Hybrid) -> Losses:
        pairs = pairs_of(signal)
        rewards = self.beta * log_ratio(scores)
        is_reference = (signal.source == REFERENCE).to(rewards.dtype)
        chosen, rejected = pair_sides(is_reference * sum_tokens(scores.logp, scores.lengths), pairs)
        per_unit = logistic(pair_margin(rewards, pairs)) + self.alpha * (chosen + rejected)
        return pair_losses(per_unit, scores, pairs, rewards)
