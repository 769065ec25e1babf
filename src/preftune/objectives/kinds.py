"""Base classes of objectives by the unit that their loss averages over."""

from typing import Any

import torch
from torch import Tensor

from preftune.objectives.base import Objective, Opponent, num_tokens
from preftune.objectives.groupwise import all_pairs, comparable_groups, group_weights
from preftune.objectives.labelwise import label_weights
from preftune.objectives.pairwise import pair_weights
from preftune.types import Float, Int, Labels, Pairs, Rewards


class PairObjective(Objective):
    """One unit per pair."""

    signal = Pairs

    @property
    def opponents(self) -> tuple[Opponent, ...]:
        """Mixtures may write completions of a pair, unless the loss compares the policy with who wrote them."""
        return ("none",) if "behaviour_logp" in self.needs else ("none", "mixture", "two-sided")

    def weights(self, lengths: Int[Tensor, " C"], signal: Any) -> Float[Tensor, " P"]:
        return pair_weights(signal)


class LabelObjective(Objective):
    """One unit per labeled completion."""

    signal = Labels

    def weights(self, lengths: Int[Tensor, " C"], signal: Any) -> Float[Tensor, " U"]:
        return label_weights(signal)


class RewardObjective(Objective):
    """An objective on rewarded groups that defines its own units."""

    signal = Rewards
    correctable = True


class GroupObjective(RewardObjective):
    """One unit per group."""

    correctable = False

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " G"]:
        return group_weights(signal)


class GroupOfTwoObjective(RewardObjective):
    """One unit per group; a group of a single completion has no weight."""

    least_completions = 2
    correctable = False

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " G"]:
        return comparable_groups(signal)


class GroupPairObjective(RewardObjective):
    """One unit per two completions of a group; the units of a group share the weight of one."""

    least_completions = 2
    correctable = False

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " P"]:
        return all_pairs(signal)[1]


class CompletionObjective(RewardObjective):
    """One unit per completion of a group."""

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " C"]:
        return _ones(len(lengths), lengths)


class TokenObjective(RewardObjective):
    """One unit per token of a completion of a group."""

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " N"]:
        return _ones(num_tokens(lengths), lengths)


def _ones(count: int, like: Tensor) -> Float[Tensor, " U"]:
    return torch.ones(count, dtype=torch.get_default_dtype(), device=like.device)
