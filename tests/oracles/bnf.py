"""BNF as the paper defines it: the full target distribution over the vocabulary, frozen, and a cross-entropy
with it.
"""

import torch
from torch import Tensor


def full_target(logits: Tensor, ref_logits: Tensor, target: int) -> Tensor:
    """f: min(p_y / q_y, 1) on the target; the rest of the mass spread over the others in proportion to p."""
    p, q = logits.softmax(-1), ref_logits.softmax(-1)
    f_target = torch.clamp(p[target] / q[target], max=1.0)
    f = (1 - f_target) / (1 - p[target]) * p
    f[target] = f_target
    return f.detach()


def full_bnf_loss(logits: Tensor, ref_logits: Tensor, targets: Tensor) -> Tensor:
    """- sum_v f_v log p_v of each position, for label +1; logits [n, V] -> [n]."""
    return torch.stack(
        [
            -(full_target(z, z_ref, int(y)) * z.log_softmax(-1)).sum()
            for z, z_ref, y in zip(logits, ref_logits, targets, strict=True)
        ]
    )
