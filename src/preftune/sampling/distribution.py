"""From logits to drawn tokens: the distribution that is drawn from, its randomness, and the draw. Pure."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# tokens whose probabilities are summed first, so that a draw reads V / 256 + 256 cumulative sums
_BLOCK = 256
_TOP = 1024  # tokens that nearly always hold the top_p of a distribution; sorting them costs less than sorting all
MAX_KEY = 2**64  # keys are smaller


def uniforms(seed: int, key: int, sample: int, count: int, turn: int = 0) -> Float[np.ndarray, " _"]:
    """`count` numbers in [0, 1), in float64, that depend on nothing but seed, key of the prompt, number of the
    sample and number of the model's turn in it.

    Philox (Salmon et al., 2011) computes them from a counter: the seed is its key; prompt, sample and turn are
    words of the counter that counting does not reach. The first numbers of a longer request are those of a
    shorter one.
    """
    generator = np.random.Philox(key=seed, counter=np.array([0, sample, key, turn], dtype=np.uint64))
    return (generator.random_raw(count) >> np.uint64(11)) * 2.0**-53


def log_distribution(
    logits: Float[Tensor, "R V"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Tensor, "R V"]:
    """Log-probabilities of the distribution that is drawn from; -inf for tokens that are left out.

    Applied in this order, each to what the one before left: softmax(logits / temperature); the top_k most
    probable tokens; the smallest set of the most probable tokens that holds top_p of the probability; tokens
    at least min_p times as probable as the most probable one. Tokens as probable as the last one that is kept
    are kept, too.
    """
    y = logits / temperature if temperature != 1.0 else logits
    if 0 < top_k < y.shape[1]:
        y = y.masked_fill(y < y.topk(top_k).values[:, -1:], -math.inf)
    if top_p < 1.0:
        y = y.masked_fill(y < _nucleus_end(y, top_p), -math.inf)
    if min_p > 0.0:
        y = y.masked_fill(y < y.amax(1, keepdim=True) + math.log(min_p), -math.inf)
    return y.log_softmax(1)


def _nucleus_end(y: Float[Tensor, "R V"], top_p: float) -> Float[Tensor, "R 1"]:
    """The logit of the last token of each row's smallest set that holds `top_p` of the probability."""
    normalizer = y.logsumexp(1, keepdim=True)
    for count in (min(_TOP, y.shape[1]), y.shape[1]):
        best = y.topk(count).values
        held = (best - normalizer).exp().cumsum(1, dtype=torch.float64)
        if bool((held[:, -1] >= top_p).all()):
            break
    return best.gather(1, (held < top_p).sum(1, keepdim=True).clamp(max=best.shape[1] - 1))


def pick(probabilities: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The token at which the cumulative probability passes `uniform` (float64, in [0, 1)) of the total.

    A token of probability 0 is never picked. Sums are in float64; a vocabulary in fp32 would bias the draw by
    its rounding.
    """
    rows, width = probabilities.shape
    blocks = torch.nn.functional.pad(probabilities, (0, -width % _BLOCK)).view(rows, -1, _BLOCK)
    passed = blocks.sum(2, dtype=torch.float64).cumsum(1)
    target = _below(uniform * passed[:, -1], passed[:, -1])
    block = (passed <= target[:, None]).sum(1)
    before = torch.where(block > 0, passed.gather(1, (block - 1).clamp(min=0)[:, None]).squeeze(1), 0.0)
    inside = blocks[torch.arange(rows, device=block.device), block].cumsum(1, dtype=torch.float64)
    place = (inside <= _below(target - before, inside[:, -1])[:, None]).sum(1)
    return block * _BLOCK + place


def _below(value: Tensor, limit: Tensor) -> Tensor:
    """`value`, where rounding did not lift it to `limit`; else the next number below."""
    return torch.minimum(value, torch.nextafter(limit, torch.zeros_like(limit)))
