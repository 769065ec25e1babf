"""Every objective of the table on a model: from groups to a gradient, in one piece or several, and held out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from preftune.data.pack import LayoutOptions
from preftune.objectives import OBJECTIVES
from preftune.objectives.nca import NCA
from preftune.objectives.simpo import SimPO
from preftune.policy.policy import Policy, score_groups
from preftune.train.batches import cut_step, make_score, mismatched_groups
from preftune.train.evaluate import evaluate
from preftune.train.step import accumulate_gradient, couple_step
from preftune.types import Labels
from tests.models import random_groups, tiny_model

WHOLE, CUT = LayoutOptions(), LayoutOptions(row_tokens=64, micro_batch_tokens=64)


def policy_of(seed: int) -> Policy:
    return Policy(model=tiny_model(seed=seed, std=0.12), precision="fp32", sharing="shared", sharing_reason="")


POLICY, REFERENCE, BEHAVIOUR = policy_of(1), policy_of(2), policy_of(3)
GROUPS = [
    replace(
        group,
        labels=tuple(1 - 2 * (k % 2) for k in range(len(group.completions))),
        rewards=tuple(0.5 * k - 0.3 * n for k in range(len(group.completions))),
    )
    for n, group in enumerate(random_groups(seed=3, num_groups=6))
]


def reference(groups):
    return score_groups(REFERENCE, groups, WHOLE)


def with_samplers_scores(score, objective):
    """What no file tells: the logp of a policy that sampled, and a critic's values, here a function of the logp."""

    def score_piece(piece):
        scores = score(piece)
        if "behaviour_logp" in objective.needs:
            flat = [logp for group in score_groups(BEHAVIOUR, piece.content.groups, WHOLE) for logp in group]
            scores = replace(scores, behaviour_logp=torch.from_numpy(np.concatenate(flat)))
        return replace(scores, value=0.3 * scores.logp) if "value" in objective.needs else scores

    return score_piece


def gradient(objective, layout) -> tuple[int, float, torch.Tensor]:
    """(number of micro-batches, loss, gradient of all parameters)."""
    pieces = cut_step(GROUPS, objective.signal, POLICY, layout)
    POLICY.model.zero_grad()
    used = reference if "ref_logp" in objective.needs else None
    score = with_samplers_scores(make_score(POLICY, objective, used), objective)
    mismatched = cut_step(mismatched_groups(GROUPS), Labels, POLICY, layout)
    couplings, _ = couple_step(pieces, mismatched, objective, score, None)
    loss, metrics = accumulate_gradient(pieces, objective, score, couplings)
    assert metrics
    found = [p.grad.flatten().clone() for p in POLICY.model.parameters() if p.grad is not None]
    return len(pieces), loss, torch.cat(found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pieces_add_up_to_the_step(name):
    objective = OBJECTIVES[name]()
    one, loss, whole = gradient(objective, WHOLE)
    several, sum_of_losses, parts = gradient(objective, CUT)
    assert one == 1 < several
    assert sum_of_losses == pytest.approx(loss, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())
    assert whole.abs().max() > 0


@pytest.mark.parametrize("objective", [SimPO(), NCA(beta=0.5)])
def test_held_out_rewards_are_the_objectives_own(objective):
    """And not beta times log-ratio, which evaluation measures for objectives that score nothing themselves."""
    held = evaluate(POLICY, GROUPS, objective, reference, WHOLE)
    pieces = cut_step(GROUPS, objective.signal, POLICY, WHOLE)
    own = objective(make_score(POLICY, objective, reference)(pieces[0]), pieces[0].signal).metrics
    for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies", "log_ratios/chosen"):
        assert held[name] == pytest.approx(own[name].mean().item(), rel=1e-5), name
