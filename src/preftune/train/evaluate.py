"""Held-out loss and metrics, reduced inside the step: no logits are kept."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch

from preftune.data.pack import LayoutOptions, batch_signal, group_pairs
from preftune.objectives import Objective, State, reduce_losses
from preftune.objectives.base import pair_metrics
from preftune.policy.policy import Policy
from preftune.train.anchors import Anchors
from preftune.train.batches import PackedContent, cut_mismatched, cut_step, make_score, reads_last
from preftune.train.step import MetricMeter, couple_step, global_weight
from preftune.types import Group, Pairs


@torch.no_grad()
def evaluate(
    policy: Policy,
    groups: Sequence[Group],
    objective: Objective,
    anchors: Anchors,
    layout: LayoutOptions,
    state: State | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Loss and metrics over all groups. Groups that hold a preference also give margins and accuracies, whatever the
    objective learns from. Data on which the objective puts no weight (dispreferred completions only, for SFT) have no loss.

    These are the objective's own where it gives them; else the implicit reward is beta * log-ratio, beta being 1 for
    objectives that have none. What couples units is computed over all groups, as if they were the next step; `state` is
    that of the objective's estimators in training, and stays as it is.
    """
    beta = float(asdict(objective).get("beta", 1.0))  # type: ignore[call-overload]
    pieces = cut_step(groups, objective.signal, policy, layout, reads_last(objective))
    has_loss = any(bool((objective.weights(piece.lengths, piece.signal) != 0).any()) for piece in pieces)
    total = global_weight(pieces, objective) if has_loss else 1.0
    score = make_score(policy, objective, anchors)
    mismatched = cut_mismatched(groups, objective, policy, layout)
    couplings, _ = couple_step(pieces, mismatched, objective, score, state)
    loss, meter, done = 0.0, MetricMeter(), 0
    for piece, coupling in zip(pieces, couplings, strict=True):
        scores = replace(score(piece), coupling=coupling)
        losses = objective(scores, piece.signal)
        loss += reduce_losses(losses, total).item()
        metrics = dict(losses.metrics)
        assert isinstance(piece.content, PackedContent)
        preferences = [replace(group, pairs=group_pairs(group)) for group in piece.content.groups]
        own = "rewards/margins" in metrics  # what the objective scores with wins over beta * log-ratio
        if not own and anchors.reference is not None and any(group.pairs for group in preferences):
            pairs = batch_signal(preferences, Pairs)
            assert isinstance(pairs, Pairs)
            metrics |= pair_metrics(scores, pairs, beta)
        meter.add(metrics)
        done += len(piece.origins)
        progress(done, len(groups))
    return ({"loss": loss} if has_loss else {}) | meter.means()
