"""Nash-MD: policy gradient on win rates."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import ChosenFall, log_ratio, sum_tokens
from preftune.objectives.checks import not_negative
from preftune.objectives.groupwise import group_metrics
from preftune.objectives.kinds import CompletionObjective
from preftune.objectives.learning_rates import rates_of
from preftune.types import Entries, Float, Losses, Rewards, TokenScores


def win_rate_losses(
    win_rate: Float[Tensor, " C"],
    advantage: Float[Tensor, " C"],
    weight: Float[Tensor, " C"],
    scores: TokenScores,
    signal: Rewards,
    *,
    rewards: Float[Tensor, " C"],
) -> Losses:
    """-sg(advantage) log pi(y) of each completion, and the metrics of a policy gradient on win rates."""
    advantage = advantage.detach()
    counted = weight > 0
    return Losses(
        per_unit=-advantage * sum_tokens(scores.logp, scores.lengths),
        weight=weight,
        metrics=group_metrics(scores, signal, rewards)
        | {
            "win_rate": Entries(values=win_rate, counted=counted),
            "advantage": Entries(values=advantage, counted=counted),
        },
    )


@dataclass(frozen=True, kw_only=True)
class NashMD(CompletionObjective):
    """Likelihood of each sampled completion, weighted by how far its win rate exceeds one half, less a KL
    penalty.

        L = -sg( P(y > y') - 1/2 - beta * h(y) ) log pi(y)

    Munos et al., "Nash Learning from Human Feedback", ICML 2024, arXiv 2312.00886; checked against public
    implementations. The reward of a completion is its win rate, in [0, 1], against a completion y' of the
    mixture of policy and reference, which is the sampler's business. The penalty is of the sequence, so that
    its expected gradient is that of KL(pi || ref).

    Args:
        beta: strength of the pull to the reference, >= 0. At 0 no reference is needed: REINFORCE with a
            baseline of 1/2.
    """

    name = "nash-md"
    learning_rates = rates_of(5e-7, "TRL's online trainers")
    opponents = ("none", "reference", "mixture")

    beta: float = not_negative(0.1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp"} if self.beta > 0 else ())

    @property
    def chosen_fall(self) -> ChosenFall:
        return "prevented" if self.beta > 0 else "possible"

    @property
    def value_is_surrogate(self) -> bool:
        return self.beta > 0

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        win_rate = signal.reward.to(scores.logp.dtype)
        advantage = win_rate - 0.5
        rewards = sum_tokens(scores.logp, scores.lengths)
        if self.beta > 0:
            rewards = self.beta * log_ratio(scores)
            advantage = advantage - rewards
        weight = self.weights(scores.lengths, signal).to(win_rate.dtype)
        return win_rate_losses(win_rate, advantage, weight, scores, signal, rewards=rewards)
