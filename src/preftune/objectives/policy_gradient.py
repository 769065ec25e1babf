"""What policy-gradient objectives share: rewards with their KL penalty, units of weight one, metrics."""

import torch
from torch import Tensor

from preftune.objectives.advantages import group_deviation
from preftune.objectives.base import behaviour, log_ratio, reference, sum_tokens
from preftune.objectives.clipping import clipped_loss, is_clipped, kl_estimate
from preftune.objectives.credit import received
from preftune.objectives.groupwise import group_metrics
from preftune.types import Float, Int, Losses, Rewards, TokenScores


def penalized_reward(scores: TokenScores, signal: Rewards, beta: float) -> Float[Tensor, " C"]:
    """r - beta * h, detached, h being the policy's log-ratio to the reference, summed over tokens."""
    reward = signal.reward.to(scores.logp.dtype)
    return reward - beta * log_ratio(scores).detach() if beta > 0 else reward


def penalized_token_rewards(
    scores: TokenScores | None, lengths: Int[Tensor, " C"], signal: Rewards, beta: float
) -> Float[Tensor, " N"]:
    """-beta * (log mu - log ref) at each token, mu being the behavior policy, and the reward at the last
    one; those of steps at the tokens that end them.

    Numbers of the sample alone: they stay as they are while the policy takes steps on it. Scores only if beta
    > 0.
    """
    rewards = received(signal, lengths)
    if scores is None or beta == 0:
        return rewards
    return rewards.to(scores.logp.dtype) - beta * kl_estimate("k1", behaviour(scores) - reference(scores))


def unit_weights(num_units: int, like: Int[Tensor, " C"]) -> Float[Tensor, " U"]:
    """One for each unit."""
    return torch.ones(num_units, dtype=torch.get_default_dtype(), device=like.device)


def policy_losses(
    per_unit: Float[Tensor, " U"],
    weight: Float[Tensor, " U"],
    scores: TokenScores,
    signal: Rewards,
    *,
    advantage: Float[Tensor, " U2"],
    beta: float = 0.0,
    extra: dict[str, Tensor] | None = None,
) -> Losses:
    """The losses with the usual metrics: rewards from outside, advantages, and with a reference the KL to it.

    What `rewards/*` score completions with is beta * log-ratio, or without a reference the log-probability.
    """
    with torch.no_grad():
        reward = signal.reward.to(scores.logp.dtype)
        logp = sum_tokens(scores.logp, scores.lengths)
        metrics = group_metrics(scores, signal, beta * log_ratio(scores) if beta > 0 else logp)
        metrics |= {
            "reward": reward,
            "reward/std": group_deviation(reward, signal),
            "advantage/abs": advantage.abs(),
        }
        if beta > 0:
            metrics["kl"] = kl_estimate("k3", scores.logp - reference(scores))
    return Losses(
        per_unit=per_unit,
        weight=weight.to(per_unit.dtype),
        metrics={name: value.detach() for name, value in (metrics | (extra or {})).items()},
    )


def clipped_losses(
    ratio: Float[Tensor, " U"],
    advantage: Float[Tensor, " U"],
    low: float,
    high: float,
    dual: float | None = None,
) -> tuple[Float[Tensor, " U"], dict[str, Tensor]]:
    """`clipped_loss` with its metrics: `ratio/mean`, and the share of units that it leaves without gradient."""
    flat = is_clipped(ratio, advantage, low, high, dual)
    metrics = {"ratio/mean": ratio, "ratio/clipped": flat.to(ratio.dtype)}
    return clipped_loss(ratio, advantage, low, high, dual), metrics
