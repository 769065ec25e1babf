"""Held-out loss and metrics, reduced inside the step: no logits are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from preftune.model.layout import LayoutOptions, batch_signal, group_pairs, split_micro_batches
from preftune.model.policy import Policy, score_groups
from preftune.objectives import Objective, State, reduce_losses
from preftune.objectives.base import pair_metrics, plain_metric
from preftune.train.anchors import Anchors, GroupLogps
from preftune.train.batches import (
    PackedContent,
    cut_mismatched,
    cut_step,
    evened,
    make_score,
    num_positions,
    reads_last,
    share_of,
)
from preftune.train.onpolicy.collect import judge_draw
from preftune.train.onpolicy.metrics import part_metrics
from preftune.train.onpolicy.source import OnPolicySource
from preftune.train.processes import ALONE, Processes
from preftune.train.step import MetricMeter, MicroBatch, couple_step, global_weight
from preftune.types import Group, Metric, Pairs, TokenScores


@torch.no_grad()
def evaluate(
    policy: Policy,
    groups: Sequence[Group],
    objective: Objective,
    anchors: Anchors,
    layout: LayoutOptions,
    state: State | None = None,
    processes: Processes = ALONE,
    progress: Callable[[int, int], None] = lambda done, total: None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Loss and metrics over all groups, of the policy at a temperature.

    Groups that hold a preference also give margins and accuracies,
    whatever the objective learns from. Data on which the objective puts no weight (dispreferred completions
    only, for SFT) have no loss.

    These are the objective's own where it gives them; else the implicit reward is beta * log-ratio, beta
    being 1 for objectives that have none. `length_correlation` and `length_bias` state how far margins and
    preferences follow the lengths of the two completions, where there are at least MIN_PAIRS pairs. What
    couples units is computed over all groups, as if they were the next step; `state` is that of the
    objective's estimators in training, and stays as it is. Each of several processes computes its share, and
    all return the same.
    """
    beta = float(asdict(objective).get("beta", 1.0))  # type: ignore[call-overload]
    pieces = cut_step(
        share_of(groups, policy, processes), objective.signal, policy, layout, reads_last(objective)
    )
    has_loss = processes.any(
        any(bool((objective.weights(piece.lengths, piece.signal) != 0).any()) for piece in pieces)
    )
    pieces = evened(pieces, groups, objective.signal, policy, layout, processes, reads_last(objective))
    total = global_weight(pieces, objective, processes) if has_loss else 1.0
    score = make_score(policy, objective, anchors, temperature)
    mismatched = cut_mismatched(groups, objective, policy, layout, processes)
    couplings, _ = couple_step(pieces, mismatched, objective, score, state, processes)
    meter, done = MetricMeter(), 0
    parts: list[Tensor] = []
    margins: list[Tensor] = []
    gaps: list[Tensor] = []
    for piece, coupling in zip(pieces, couplings, strict=True):
        scores = replace(score(piece), coupling=coupling)
        if piece.idle:
            continue
        losses = objective(scores, piece.signal)
        parts.append(reduce_losses(losses, total))
        metrics, pairs = _with_pair_metrics(losses.metrics, scores, piece, anchors, beta)
        if pairs is not None:
            margins.append(plain_metric(metrics["rewards/margins"]).double().cpu())
            gaps.append((piece.lengths[pairs.chosen] - piece.lengths[pairs.rejected]).double().cpu())
        meter.add(metrics)
        done += len(piece.origins)
        progress(done, len(groups))
    loss = sum(meter.read(parts))
    meter.join(processes)
    watched = processes.gather((margins, gaps))
    lengths = length_metrics([m for one, _ in watched for m in one], [g for _, one in watched for g in one])
    return ({"loss": processes.total(loss)} if has_loss else {}) | meter.means() | lengths


def _with_pair_metrics(
    metrics: Mapping[str, Metric], scores: TokenScores, piece: MicroBatch, anchors: Anchors, beta: float
) -> tuple[dict[str, Metric], Pairs | None]:
    """Metrics with those of preference pairs, and the pairs that they are of, if there are any. What the
    objective itself scores with has precedence over beta * log-ratio.
    """
    if "rewards/margins" in metrics:
        return dict(metrics), piece.signal if isinstance(piece.signal, Pairs) else None
    assert isinstance(piece.content, PackedContent)
    preferences = [replace(group, pairs=group_pairs(group)) for group in piece.content.groups]
    if anchors.reference is None or not any(group.pairs for group in preferences):
        return dict(metrics), None
    pairs = batch_signal(preferences, Pairs)
    assert isinstance(pairs, Pairs)
    return {**metrics, **pair_metrics(scores, pairs, beta)}, pairs


MIN_PAIRS = 10
"""Fewer pairs correlate with anything."""
MIN_SPREAD = 1e-4
"""Margins that differ by less, in their own unit, are rounding: before training all are 0."""


def length_metrics(margins: Sequence[Tensor], gaps: Sequence[Tensor]) -> dict[str, float]:
    """Of the gaps length(chosen) - length(rejected): Pearson's correlation with the margins of the pairs, and
    the mean sign.

    Nothing where it means nothing.
    """
    if sum(map(len, margins)) < MIN_PAIRS:
        return {}
    margin, gap = torch.cat(list(margins)).numpy(), torch.cat(list(gaps)).numpy()
    if margin.std() < MIN_SPREAD or gap.std() == 0:
        return {}
    return {
        "length_correlation": float(np.corrcoef(margin, gap)[0, 1]),
        "length_bias": float(np.sign(gap).mean()),
    }


EVALUATION = 2**40
"""Number of the draw that evaluations make, beyond those of any training: the same noise every time."""


@torch.no_grad()
def evaluate_samples(
    source: OnPolicySource,
    prompts: Sequence[Group],
    reference: GroupLogps | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    step: int = 0,
) -> dict[str, float]:
    """Reward of the policy's samples on held-out prompts, their length, and how many ended.

    Where sampling leaves no token out, also the entropy per token and KL(policy || reference) per completion
    in nats, both estimated by these samples; policy and reference are those that sample, at the temperature
    of sampling.
    """
    policy, options = source.policy, source.options
    judge = replace(
        source.judge, sampling=replace(source.judge.sampling, num_completions=options.eval_completions)
    )
    drawn, _ = source.drawn(prompts, judge, EVALUATION, progress)
    records = [source.records[group.origin] for group in prompts]
    groups, verdicts = source.processes.from_main(lambda: judge_draw(drawn, judge, records, step))
    lengths = [size for group in groups for size in group.num_scored]
    metrics = {
        "completions/length": float(np.mean(lengths)),
        "completions/ended": float(np.mean([e for one in drawn.ended for e in one])),
    }
    if judge.reward is not None:
        metrics["no_reward"] = float(verdicts.rewards.count(None))
    known = [reward for reward in verdicts.rewards if reward is not None]
    if known:
        metrics["reward"] = float(np.mean(known))
    metrics |= part_metrics(verdicts.parts, "")
    temperature = judge.sampling.temperature
    if temperature == 0 or judge.sampling.truncated:
        return metrics
    logp, ratio = 0.0, 0.0
    mine = share_of(groups, policy, source.processes)
    parts = [
        [mine[i] for i in indices] for indices in split_micro_batches(mine, source.layout, policy.sharing)
    ]
    idle = [min(groups, key=lambda group: num_positions([group], policy.sharing))]
    for weight, part in [*((1.0, part) for part in parts), *[(0.0, idle)] * policy.behind(len(parts))]:
        scored = score_groups(policy, part, source.layout, temperature)
        own = sum(one.sum(dtype=np.float64) for group in scored for one in group)
        logp += weight * own
        if reference is not None:
            ratio += weight * (
                own - sum(one.sum(dtype=np.float64) for group in reference(part) for one in group)
            )
    logp, ratio = source.processes.total(float(logp)), source.processes.total(float(ratio))
    metrics["entropy"] = float(-logp / sum(lengths))
    return metrics | ({} if reference is None else {"kl": float(ratio / len(lengths))})
