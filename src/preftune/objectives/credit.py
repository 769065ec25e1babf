"""Credit below the completion: what each token gets of the rewards of steps. Pure, and without gradients.

`Rewards.step` holds the reward of a step at the token that ends it, NaN at the others. It is a part of the
completion's reward; what is left of that, the outcome, is received at the last token.
"""

import torch

from preftune.objectives.advantages import at_last_token
from preftune.objectives.base import num_tokens, per_token, sum_tokens
from preftune.objectives.groupwise import group_index
from preftune.types import Float, Int, Rewards


def step_rewards(signal: Rewards, lengths: Int[torch.Tensor, " C"]) -> Float[torch.Tensor, " N"]:
    """What each token receives for the step that it ends; 0 where none ends."""
    if signal.step is None:
        return signal.reward.new_zeros(num_tokens(lengths))
    return signal.step.to(signal.reward.dtype).nan_to_num(nan=0.0)


def outcome_reward(signal: Rewards, lengths: Int[torch.Tensor, " C"]) -> Float[torch.Tensor, " C"]:
    """The reward of each completion without those of its steps."""
    if signal.step is None:
        return signal.reward
    return signal.reward - sum_tokens(step_rewards(signal, lengths), lengths)


def received(signal: Rewards, lengths: Int[torch.Tensor, " C"]) -> Float[torch.Tensor, " N"]:
    """The reward that each token receives: that of the step which it ends, and the outcome at the last."""
    if signal.step is None:
        return at_last_token(signal.reward, lengths)
    return at_last_token(outcome_reward(signal, lengths), lengths) + step_rewards(signal, lengths)


def received_before(signal: Rewards, lengths: Int[torch.Tensor, " C"]) -> Float[torch.Tensor, " N"]:
    """Rewards of the steps that had ended before each token: no choice of the token changes these."""
    steps = step_rewards(signal, lengths)
    total = steps.double().cumsum(0) - steps.double()
    starts = lengths.cumsum(0) - lengths
    return (total - per_token(total[starts], lengths)).to(steps.dtype)


def own_step(signal: Rewards, lengths: Int[torch.Tensor, " C"]) -> Float[torch.Tensor, " N"]:
    """The reward of the step that each token belongs to; 0 behind the last step."""
    steps = step_rewards(signal, lengths)
    if signal.step is None:
        return steps
    places, count = torch.arange(len(steps), device=steps.device), len(steps)
    ends = torch.where(signal.step.isnan(), count, places)
    following = ends.flip(0).cummin(0).values.flip(0)
    stops = per_token(lengths.cumsum(0), lengths)
    return torch.where(following < stops, steps[following.clamp(max=count - 1)], 0.0)


def standardized_steps(
    signal: Rewards, lengths: Int[torch.Tensor, " C"], eps: float
) -> Float[torch.Tensor, " N"]:
    """(r - mean) / (standard deviation + eps) over the rewards of all steps of a group, at the tokens that end
    them. Shao et al., "DeepSeekMath", arXiv 2402.03300, section 4.1.3.
    """
    found = step_rewards(signal, lengths)
    if signal.step is None:
        return found
    index, num_groups = group_index(signal)
    at = torch.nonzero(~signal.step.isnan()).squeeze(1)
    group, rewards = per_token(index, lengths)[at], found[at]
    zeros = rewards.new_zeros(num_groups)
    size = zeros.index_add(0, group, torch.ones_like(rewards)).clamp(min=1)
    best = rewards.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, rewards, "amax")
    below = rewards - best[group]  # so that equal rewards give 0 exactly
    off = below - (zeros.index_add(0, group, below) / size)[group]
    deviation = (zeros.index_add(0, group, off.square()) / (size - 1).clamp(min=1)).sqrt()
    return torch.zeros_like(found).index_copy(0, at, off / (deviation[group] + eps))
