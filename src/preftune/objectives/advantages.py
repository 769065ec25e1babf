"""From rewards to advantages, the signed coefficients of a policy gradient. Pure, and without gradients.

A group is never cut, so what compares the completions of a prompt needs nothing from outside; what compares
the whole step (`whitened`) takes the step's mean and variance as numbers.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from preftune.objectives.base import PICKED_ON, num_tokens
from preftune.objectives.groupwise import group_index, group_max, group_sum
from preftune.types import Float, Int, Rewards

# Added to a variance before its root, as in TRL and verl; advantages of a step whose rewards are all equal
# stay 0.
_SMALLEST_VARIANCE = 1e-8


def centred(reward: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " C"]:
    """r - mean of its group, the completion itself included.

    Taken from the group's best, so that equal rewards give 0 exactly and not the rounding error of their
    mean, which a division by its own deviation would blow up.
    """
    index, _ = group_index(signal)
    below_best = reward - group_max(reward, signal)[index]
    return below_best - (group_sum(below_best, signal) / group_size(reward, signal))[index]


def leave_one_out(reward: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " C"]:
    """r - mean of the others of its group = K / (K - 1) * centered, of K completions; 0 for a completion that is alone.

    Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019; Ahmadian et al., arXiv 2402.14740.
    """
    index, _ = group_index(signal)
    size = group_size(reward, signal)
    return centred(reward, signal) * (size / (size - 1).clamp(min=1))[index]


def standardized(reward: Float[Tensor, " C"], signal: Rewards, eps: float) -> Float[Tensor, " C"]:
    """(r - mean) / (standard deviation + eps) of its group. Shao et al., "DeepSeekMath", arXiv 2402.03300."""
    index, _ = group_index(signal)
    return centred(reward, signal) / (group_deviation(reward, signal)[index] + eps)


def group_deviation(reward: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " G"]:
    """Standard deviation within each group, with K - 1 in the denominator; 0 for a group of one."""
    squares = group_sum(centred(reward, signal).square(), signal)
    return (squares / (group_size(reward, signal) - 1).clamp(min=1)).sqrt()


def group_size(reward: Float[Tensor, " C"], signal: Rewards) -> Float[Tensor, " G"]:
    """Completions of each group."""
    return group_sum(torch.ones_like(reward), signal)


# --- token by token ---


def at_last_token(reward: Float[Tensor, " C"], lengths: Int[Tensor, " C"]) -> Float[Tensor, " N"]:
    """For each token, the reward of its completion if it is the last token, else 0."""
    rewards = reward.new_zeros(num_tokens(lengths))
    rewards[lengths.cumsum(0) - 1] = reward
    return rewards


def gae(
    rewards: Float[Tensor, " N"],
    values: Float[Tensor, " N"],
    lengths: Int[Tensor, " C"],
    gamma: float,
    lam: float,
) -> Float[Tensor, " N"]:
    """Generalized advantage estimation within each completion, after whose last token nothing comes.

        A_t = d_t + gamma * lam * A_t+1,   d_t = r_t + gamma * V_t+1 - V_t

    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016,
    arXiv
    1506.02438, equations 11 and 16.
    """
    errors = rewards + gamma * _later(values, 1, _owners(lengths, len(values))) - values
    way = discounted_in_order if rewards.device.type in PICKED_ON else discounted_by_doubling
    return way(errors, lengths, gamma * lam)


def _owners(lengths: Int[Tensor, " C"], total: int) -> Int[Tensor, " N"]:
    """The completion of each token."""
    return torch.repeat_interleave(
        torch.arange(len(lengths), device=lengths.device), lengths, output_size=total
    )


def _later(of: Float[Tensor, " N"], distance: int, owners: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The values a number of tokens later in the same completion, or 0."""
    together = owners[distance:] == owners[:-distance]
    return pad(of[distance:].where(together, 0.0), (0, distance))


def discounted_in_order(
    values: Float[Tensor, " N"], lengths: Int[Tensor, " C"], discount: float
) -> Float[Tensor, " N"]:
    """sum over k >= 0 of discount^k v_t+k within each completion, from the last token back, for processors: a
    step for each token of the longest completion.
    """
    sums, starts = torch.zeros_like(values), lengths.cumsum(0) - lengths
    following = values.new_zeros(len(lengths))
    for t in reversed(range(int(lengths.max()))):
        here = torch.nonzero(lengths > t).squeeze(1)  # completions that have a token t
        at = starts[here] + t
        sums[at] = values[at] + discount * following[here]
        following[here] = sums[at]
    return sums


def discounted_by_doubling(
    values: Float[Tensor, " N"], lengths: Int[Tensor, " C"], discount: float
) -> Float[Tensor, " N"]:
    """`discounted_in_order` for GPUs: sums over 1, 2, 4, ... tokens in a few operations each, and no length is
    waited for.
    """
    sums, owners, reach = values, _owners(lengths, len(values)), 1
    while reach < len(values):
        sums = sums + discount**reach * _later(sums, reach, owners)
        reach *= 2
    return sums


def reward_to_go(
    rewards: Float[Tensor, " N"], lengths: Int[Tensor, " C"], gamma: float
) -> Float[Tensor, " N"]:
    """sum over k >= 0 of gamma^k r_t+k within each completion: the advantage without a critic."""
    return gae(rewards, torch.zeros_like(rewards), lengths, gamma, 1.0)


def moments(values: Float[Tensor, " N"]) -> dict[str, Float[Tensor, ""]]:
    """`mean` and `variance` (with N - 1 in the denominator; 0 of a single value), in fp64."""
    mean = values.double().mean()
    squares = (values.double() - mean).square().sum()
    return {"mean": mean, "variance": squares / max(1, len(values) - 1)}


def whitened(
    values: Float[Tensor, " N"], mean: Float[Tensor, ""], variance: Float[Tensor, ""]
) -> Float[Tensor, " N"]:
    """(v - mean) / sqrt(variance + 1e-8), with the moments of a whole step."""
    return ((values.double() - mean) * (variance + _SMALLEST_VARIANCE).rsqrt()).to(values.dtype)
