"""Every objective of the table on a model: from groups to a gradient, in one piece or several, and held out."""

from dataclasses import replace

import pytest
import torch

from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, hidden_states, make_value_head, model_head, score_groups
from preftune.model.reference import VOCABULARY_SCORES
from preftune.objectives import OBJECTIVES
from preftune.objectives.nca import NCA
from preftune.objectives.simpo import SimPO
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_mismatched, cut_step, make_score, reads_last
from preftune.train.evaluate import evaluate
from preftune.train.step import accumulate_gradient, couple_step, global_weight
from tests.models import random_groups, tiny_model

WHOLE, CUT = LayoutOptions(), LayoutOptions(micro_batch_tokens=64)


def policy_of(seed: int) -> Policy:
    model = tiny_model(seed=seed, std=0.12)
    head = make_value_head(model)
    torch.nn.init.normal_(head.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return Policy(model=model, precision="fp32", sharing="shared", sharing_reason="", value_head=head)


POLICY, REFERENCE = policy_of(1), policy_of(2)
ANCHORS = {"reference": REFERENCE, "behaviour": policy_of(3), "contrast": policy_of(4)}
GROUPS = [
    replace(
        group,
        labels=tuple(1 - 2 * (k % 2) for k in range(len(group.completions))),
        sources=(1, 2, 1)[: len(group.completions)],
        rewards=tuple(0.5 * k - 0.3 * n for k in range(len(group.completions))),
    )
    for n, group in enumerate(random_groups(seed=3, num_groups=6))
]


def logps_of(policy: Policy):
    return lambda groups: score_groups(policy, groups, WHOLE)


def reference_hidden(groups):
    batch = collate(groups, WHOLE, REFERENCE.sharing)
    with torch.no_grad():
        return hidden_states(REFERENCE.model, batch, REFERENCE.sharing)[batch.predict_at], model_head(
            REFERENCE.model
        )


def anchors_for(objective) -> Anchors:
    """Every anchor that the objective needs, each another model."""
    every = {"ref_logp": "reference", "behaviour_logp": "behaviour", "contrast": "contrast"}
    given = {role: logps_of(ANCHORS[role]) for need, role in every.items() if need in objective.needs}
    return Anchors(
        **given, reference_hidden=reference_hidden if objective.needs & VOCABULARY_SCORES else None
    )


def gradient(objective, layout) -> tuple[int, float, torch.Tensor]:
    """(number of micro-batches, loss, gradient of all parameters)."""
    pieces = cut_step(GROUPS, objective.signal, POLICY, layout, reads_last(objective))
    for parameter in POLICY.trainable().values():
        parameter.grad = None
    score = make_score(POLICY, objective, anchors_for(objective))
    couplings, _ = couple_step(
        pieces, cut_mismatched(GROUPS, objective, POLICY, layout), objective, score, None
    )
    losses, meter = accumulate_gradient(pieces, objective, score, couplings, global_weight(pieces, objective))
    loss = sum(meter.read(losses))
    metrics = meter.means()
    assert metrics
    found = [p.grad.flatten().clone() for p in POLICY.trainable().values() if p.grad is not None]
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
    anchors = Anchors(reference=logps_of(REFERENCE))
    held = evaluate(POLICY, GROUPS, objective, anchors, WHOLE)
    pieces = cut_step(GROUPS, objective.signal, POLICY, WHOLE, reads_last(objective))
    own = objective(make_score(POLICY, objective, anchors)(pieces[0]), pieces[0].signal).metrics
    for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies", "log_ratios/chosen"):
        assert held[name] == pytest.approx(own[name].mean().item(), rel=1e-5), name
