"""From margins to losses: the few functions of one number that most objectives are made of. Pure,
elementwise.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.types import Float

# e^80 = 5.5e34 leaves room below fp32's 3.4e38 for a beta and a sum. The same in fp64, so that dtypes agree.
_MAX_EXPONENT = 80.0
# In fp32 a confident token has logp = 0 exactly, and its odds are infinite. Probabilities above 1 - 1e-7
# count as that.
MAX_LOGP = -1e-7


def logistic(
    margin: Float[Tensor, "U ..."], label_smoothing: float | Float[Tensor, "U ..."] = 0.0
) -> Float[Tensor, "U ..."]:
    """-(1 - e) log sigma(m) - e log sigma(-m): cross-entropy of sigma(m) with a label that is wrong with
    chance e.
    """
    loss = -(1 - label_smoothing) * logsigmoid(margin)
    may_be_wrong = isinstance(label_smoothing, Tensor) or label_smoothing > 0
    return loss - label_smoothing * logsigmoid(-margin) if may_be_wrong else loss


def hinge(margin: Float[Tensor, " U"]) -> Float[Tensor, " U"]:
    """max(0, 1 - m)."""
    return (1 - margin).clamp(min=0.0)


def binary_kl(first: Float[Tensor, " U"], second: Float[Tensor, " U"]) -> Float[Tensor, " U"]:
    """KL( Bernoulli(sigma(first)) || Bernoulli(sigma(second)) ), from the two logits."""
    on = torch.sigmoid(first) * (logsigmoid(first) - logsigmoid(second))
    off = torch.sigmoid(-first) * (logsigmoid(-first) - logsigmoid(-second))
    return on + off


def bounded_exp(exponent: Float[Tensor, " U"]) -> Float[Tensor, " U"]:
    """e^x, constant (and without gradient) above x = 80.

    For objectives that exponentiate a log-ratio: one of a few hundred nats would otherwise end the run as
    infinity.
    """
    return exponent.clamp(max=_MAX_EXPONENT).exp()


def bounded_expm1(exponent: Float[Tensor, " U"]) -> Float[Tensor, " U"]:
    """e^x - 1 with the same bound, exact near 0."""
    return torch.expm1(exponent.clamp(max=_MAX_EXPONENT))


def log_odds(logp: Float[Tensor, " U"]) -> Float[Tensor, " U"]:
    """log(p / (1 - p)) from log p, exact down to any p; constant (and without gradient) above p = 1 - 1e-7."""
    logp = logp.clamp(max=MAX_LOGP)
    log_complement = torch.where(
        logp < -math.log(2.0), torch.log1p(-logp.exp()), torch.log(-torch.expm1(logp))
    )
    return logp - log_complement
