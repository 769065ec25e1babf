"""SPO: the group as its own opponent."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import sum_tokens
from preftune.objectives.groupwise import comparable_groups, group_index
from preftune.objectives.kinds import RewardObjective
from preftune.objectives.learning_rates import our_rate
from preftune.objectives.nash_md import win_rate_losses
from preftune.types import Float, Int, Losses, Rewards, TokenScores

Win = Literal["sigmoid", "sign"]


def win_rates(
    signal: Rewards, win: str, dtype: torch.dtype
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """How often each completion beats another of its group (1/2 where there is none), and the size of its
    group.

    A win is sigma(r_i - r_j), or 1, 1/2 and 0 for a higher, an equal and a lower reward.
    """
    reward = signal.reward.to(dtype)
    gap = reward[:, None] - reward[None, :]
    wins = torch.sigmoid(gap) if win == "sigmoid" else 0.5 + 0.5 * torch.sign(gap)
    same_group = (signal.group[:, None] == signal.group[None, :]).to(dtype)
    size = same_group.sum(1)
    against_others = (same_group * wins).sum(1) - 0.5  # without the tie against itself
    return torch.where(size > 1, against_others / (size - 1), 0.5), size


@dataclass(frozen=True, kw_only=True)
class SPO(RewardObjective):
    """Likelihood of each completion, weighted by how much more often it beats the others of its group than
    they win.

        w_i = mean over j != i of P(y_i > y_j)
        L = -sg(A_i) log pi(y_i),   A_i = w_i - mean over j != i of w_j = (K / (K - 1)) (w_i - 1/2)

    Swamy et al., "A Minimaximalist Approach to Reinforcement Learning from Human Feedback", ICML 2024, arXiv
    2401.04056, whose abstract states the reward: the proportion of wins of a sample against others of the
    policy. The paper leaves the policy gradient open; here it is the leave-one-out one. On win
    rates it is Nash-MD with beta 0, times K / (K - 1). P comes from rewards, as
    sigma(r_i - r_j) or as their order.

    Args:
        win: "sigmoid" takes rewards as log-odds, "sign" takes only their order, a tie being half a win.
    """

    name = "spo"
    learning_rates = our_rate(1e-6, "the default of rloo, because no source with a rate for it could be read")
    least_completions = 2
    chosen_fall = "possible"

    win: Win = "sigmoid"

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " U"]:
        """One per completion of a group of two or more."""
        return comparable_groups(signal)[group_index(signal)[0]]

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        dtype = scores.logp.dtype
        win_rate, size = win_rates(signal, self.win, dtype)
        advantage = size / (size - 1).clamp(min=1) * (win_rate - 0.5)
        weight = self.weights(scores.lengths, signal).to(dtype)
        logp = sum_tokens(scores.logp, scores.lengths)
        return win_rate_losses(win_rate, advantage, weight, scores, signal, rewards=logp)
