"""Gradient of the cheap form = gradient of the full target distribution, through a real tiny model's
parameters.
"""

import numpy as np
import pytest
import torch

from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, score
from preftune.objectives import reduce_losses
from preftune.objectives.bnf import BNF
from preftune.types import Labels, TokenScores
from tests.models import random_groups, tiny_model
from tests.oracles.bnf import full_bnf_loss


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_same_gradient_in_fp64(name):
    model, reference = tiny_model(name, torch.float64), tiny_model(name, torch.float64, seed=1, std=0.2)
    groups = random_groups(seed=7, num_groups=3)
    batch = collate(groups, LayoutOptions(), "shared")
    label = torch.tensor([1 if i % 2 else -1 for i in range(len(batch.lengths))])

    def logp_of(m):
        return score(Policy(model=m, precision="fp32", sharing="shared", sharing_reason=""), batch).logp

    scores = TokenScores(logp=logp_of(model), lengths=batch.lengths, ref_logp=logp_of(reference).detach())
    cheap = gradients(model, reduce_losses(BNF()(scores, Labels(label=label)), float(len(label))))

    total = torch.zeros((), dtype=torch.float64)
    completions = [(group.prompt, completion) for group in groups for completion in group.completions]
    for sign, (prompt, completion) in zip(label, completions, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion])).long()
        span = slice(len(prompt) - 1, -1)
        z, z_ref = (m(input_ids=ids[None], use_cache=False).logits[0][span] for m in (model, reference))
        total = total + sign * full_bnf_loss(z, z_ref.detach(), ids[len(prompt) :]).mean() / len(label)
    full = gradients(model, total)

    largest = max(gradient.abs().max() for gradient in full.values())
    assert largest > 1e-3
    for parameter, gradient in full.items():
        gap = float((cheap[parameter] - gradient).abs().max() / largest)
        assert gap < 1e-10, parameter


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
