"""Routers of mixtures of experts: the auxiliary loss that balances their load, and statistics of the load.
Without the model libraries, which the laboratory does not load.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.types import RouterUse


@dataclass(frozen=True, kw_only=True)
class Router:
    """Experts of a model whose auxiliary loss is the load-balancing loss of the Switch Transformer."""

    coefficient: float  # of the auxiliary loss in what the optimizer minimizes
    top_k: int  # experts of a token


def router_use(logits: Sequence[Float[Tensor, "RS E"]], share: Float[Tensor, " RS"], top_k: int) -> RouterUse:
    """What the routers do with the tokens of a micro-batch. `logits` has one entry a layer, `share` is the
    weight of each position.
    """
    share = share.float()
    probability, counts = 0.0, []
    entropy = torch.zeros((), device=share.device)
    for layer in logits:
        layer = layer.reshape(len(share), -1).float()
        log_p = layer.log_softmax(-1)
        p = log_p.exp()
        probability = probability + share @ p
        chosen = p.detach().topk(top_k, dim=-1).indices
        count = torch.zeros(layer.shape[-1], device=share.device)
        counts.append(count.scatter_add_(0, chosen.flatten(), share.repeat_interleave(top_k)))
        entropy += share @ -(p * log_p).sum(-1).detach()
    assert isinstance(probability, Tensor), "a router in at least one layer"
    rows = share.sum() * len(logits)
    return RouterUse(probability=probability, count=torch.stack(counts), entropy=entropy, rows=rows)


def auxiliary_loss(use: RouterUse) -> Float[Tensor, ""]:
    """num_experts * sum over experts of (share of the tokens that it gets) * (mean probability), pooled over
    layers; top_k where the load is even. Equation 4 of the Switch Transformer (arXiv 2101.03961), as transformers
    computes it. Only the probabilities carry a gradient.
    """
    shares = use.count.sum(0) / use.rows
    return len(shares) * (shares @ use.probability) / use.rows
