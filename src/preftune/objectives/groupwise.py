"""What objectives on rewarded groups share: sums and softmaxes within a group, and all pairs of a group."""

from dataclasses import replace

import torch
from torch import Tensor

from preftune.objectives.base import score_metrics
from preftune.types import Float, Int, Losses, Pairs, Rewards, TokenScores


def group_index(signal: Rewards) -> tuple[Int[Tensor, " C"], int]:
    """Each completion's group as 0, 1, 2, ... in the order of the group ids, and the number of groups."""
    if signal.sizes is not None:
        return signal.group, len(signal.sizes)
    ids, index = torch.unique(signal.group, return_inverse=True)
    return index, len(ids)


def group_weights(signal: Rewards) -> Float[Tensor, " G"]:
    """One per group."""
    _, num_groups = group_index(signal)
    return torch.ones(num_groups, dtype=torch.get_default_dtype(), device=signal.group.device)


def comparable_groups(signal: Rewards) -> Float[Tensor, " G"]:
    """One per group of two or more; a completion alone has nothing to be compared with."""
    size = group_sum(
        torch.ones(signal.group.shape, dtype=torch.get_default_dtype(), device=signal.group.device), signal
    )
    return (size > 1).to(size.dtype)


def group_sum(values: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " G"]:
    """Sum over the completions of each group."""
    index, num_groups = group_index(signal)
    return values.new_zeros(num_groups).index_add(0, index, values)


def group_max(values: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " G"]:
    """The largest value in each group."""
    index, num_groups = group_index(signal)
    return values.new_full((num_groups,), -torch.inf).scatter_reduce(0, index, values, "amax")


def group_log_softmax(values: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " C"]:
    """log softmax over the completions of each group."""
    index, _ = group_index(signal)
    shifted = values - group_max(values.detach(), signal)[index]
    return shifted - group_sum(shifted.exp(), signal).log()[index]


def reward_softmax(signal: Rewards, temperature: float, dtype: torch.dtype) -> Float[Tensor, " C"]:
    """The target softmax(reward / temperature) of each group; at 0, all on the best completion; ties share."""
    reward = signal.reward.to(dtype)
    if temperature > 0:
        return group_log_softmax(reward / temperature, signal).exp()
    index, _ = group_index(signal)
    is_best = (reward == group_max(reward, signal)[index]).to(dtype)
    return is_best / group_sum(is_best, signal)[index]


def all_pairs(signal: Rewards) -> tuple[Pairs, Float[Tensor, " P"]]:
    """Every two completions of a group, the one with the higher reward as chosen (of a tie, the first), with
    weights.

    The weights of a group's pairs sum to one, so that every group of two or more weighs the same.
    """
    index, num_groups = group_index(signal)
    order = index.argsort(stable=True)  # completions group by group, in their own order within each
    size = torch.bincount(index, minlength=num_groups)
    place = torch.arange(len(order), device=order.device)
    followers = (
        size.cumsum(0)[index[order]] - place - 1
    )  # of each completion, how many of its group come after it
    count = None if signal.sizes is None else sum(n * (n - 1) // 2 for n in signal.sizes)
    first = torch.repeat_interleave(place, followers, output_size=count)
    second = (
        first + 1 + torch.arange(len(first), device=order.device) - (followers.cumsum(0) - followers)[first]
    )
    first, second = order[first], order[second]
    by_first = first.argsort(stable=True)  # groups may be interleaved
    first, second = first[by_first], second[by_first]
    swapped = signal.reward[second] > signal.reward[first]
    pairs = Pairs(chosen=torch.where(swapped, second, first), rejected=torch.where(swapped, first, second))
    together = size[index[first]].to(torch.get_default_dtype())
    return pairs, 2 / (together * (together - 1))


def with_pairs(signal: Rewards, sizes: tuple[int, ...]) -> Rewards:
    """The signal with what follows from it alone; the groups, of these sizes, are 0, 1, 2, ... in order."""
    pairs = compared_pairs(replace(signal, sizes=sizes))
    return replace(signal, sizes=sizes, better=pairs.chosen, worse=pairs.rejected)


def compared_pairs(signal: Rewards) -> Pairs:
    """Every two completions of a group whose rewards differ."""
    if signal.better is not None and signal.worse is not None:
        return Pairs(chosen=signal.better, rejected=signal.worse)
    pairs, _ = all_pairs(signal)
    told_apart = reward_gap(signal, pairs) > 0
    return Pairs(chosen=pairs.chosen[told_apart], rejected=pairs.rejected[told_apart])


def reward_gap(signal: Rewards, pairs: Pairs) -> Float[Tensor, " P"]:
    """Reward of the chosen completion minus that of the rejected one."""
    return signal.reward[pairs.chosen] - signal.reward[pairs.rejected]


def group_metrics(scores: TokenScores, signal: Rewards, rewards: Float[Tensor, " C"]) -> dict[str, Tensor]:
    """The metrics of pairs, over every two completions of a group whose rewards differ."""
    return score_metrics(scores, compared_pairs(signal), rewards)


def group_losses(
    per_unit: Float[Tensor, " G"], scores: TokenScores, signal: Rewards, rewards: Float[Tensor, " C"]
) -> Losses:
    """The losses of groups, each of weight one, with the usual metrics; `rewards` is what the method scores
    with.
    """
    return Losses(
        per_unit=per_unit,
        weight=group_weights(signal).to(per_unit.dtype),
        metrics=group_metrics(scores, signal, rewards),
    )
