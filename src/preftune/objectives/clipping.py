"""Ratios of the policy to the policy that sampled, the clipped loss on them, and estimators of a KL
divergence.

Exponents are bounded at 80, beyond which a ratio has no gradient.
"""

from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import behaviour, mean_tokens, sum_tokens
from preftune.objectives.links import bounded_exp, bounded_expm1
from preftune.types import Bool, Float, TokenScores

KLEstimator = Literal["k1", "k2", "k3"]


def token_ratio(scores: TokenScores) -> Float[Tensor, " N"]:
    """pi(y_t) / mu(y_t) of each token, mu being the behavior policy."""
    return bounded_exp(scores.logp - behaviour(scores))


def sequence_ratio(scores: TokenScores) -> Float[Tensor, " C"]:
    """pi(y) / mu(y) of each completion: the product of its tokens' ratios."""
    return bounded_exp(sum_tokens(scores.logp - behaviour(scores), scores.lengths))


def mean_ratio(scores: TokenScores) -> Float[Tensor, " C"]:
    """(pi(y) / mu(y))^(1/n) of each completion of n tokens: the geometric mean of its tokens' ratios."""
    return bounded_exp(mean_tokens(scores.logp - behaviour(scores), scores.lengths))


def clipped_loss(
    ratio: Float[Tensor, " U"],
    advantage: Float[Tensor, " U"],
    low: float,
    high: float,
    dual: float | None = None,
) -> Float[Tensor, " U"]:
    """-min( ratio * A, clip(ratio, 1 - low, 1 + high) * A ); with `dual`, at most -dual * A where A < 0.

    Schulman et al., "Proximal Policy Optimization Algorithms", 2017, arXiv 1707.06347, equation 7; the second
    clip is that of Ye et al., "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning",
    AAAI 2020, arXiv
    1912.09729.
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def is_clipped(
    ratio: Float[Tensor, " U"],
    advantage: Float[Tensor, " U"],
    low: float,
    high: float,
    dual: float | None = None,
) -> Bool[Tensor, " U"]:
    """Where `clipped_loss` is flat: its unit has no gradient."""
    flat = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    return flat if dual is None else flat | ((advantage < 0) & (ratio > dual))


def kl_estimate(kind: KLEstimator, log_ratio: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """KL(pi || ref) from samples of pi, token by token, out of log_ratio = logp - ref_logp.

        k1  log_ratio                       unbiased; as a loss it has no expected gradient: for rewards
        k2  log_ratio^2 / 2                 biased; as a loss its expected gradient is that of KL(pi || ref)
        k3  exp(-log_ratio) - 1 + log_ratio   unbiased, never negative; as a loss its expected gradient is
        KL(ref || pi)'s

    Schulman, "Approximating KL Divergence", 2020, joschu.net/blog/kl-approx.html.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return bounded_expm1(-log_ratio) + log_ratio
