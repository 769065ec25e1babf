"""One optimizer step of a run, and its row in metrics.jsonl."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from preftune.model.cost import Shape, utilisation, work_of
from preftune.model.reference import REFERENCE_SCORES
from preftune.objectives import State
from preftune.progress import Reporter
from preftune.train.anchors import follow
from preftune.train.batches import (
    PackedContent,
    cut_mismatched,
    cut_step,
    evened,
    make_router_loss,
    make_score,
    num_positions,
    reads_last,
    share_of,
)
from preftune.train.checkpoint import Counters
from preftune.train.health_monitor import common_ends
from preftune.train.optim import learning_rate
from preftune.train.optimizers import set_learning_rate
from preftune.train.runlog import RunFolder
from preftune.train.setup import TrainingJob
from preftune.train.sources import Taken
from preftune.train.step import MicroBatch, StepResult, run_step
from preftune.types import Group


def train_step(
    job: TrainingJob, run: RunFolder, report: Reporter, counters: Counters, state: State | None, taken: Taken
) -> tuple[Counters, State, dict[str, Any]]:
    """Update the weights with the groups of a step, and write its row."""
    config, step, groups = job.config, counters.step + 1, taken.groups
    started = time.perf_counter()
    pieces = _pieces(job, groups)
    rate = learning_rate(step, max(step, job.budget.planned(counters)), config.optim)
    set_learning_rate(job.optimizer, rate)
    needed = (
        job.anchors if config.objective.needs & REFERENCE_SCORES else replace(job.anchors, reference=None)
    )
    result = run_step(
        pieces,
        config.objective,
        make_score(job.policy, config.objective, needed, config.scored_at),
        list(job.policy.trainable().values()),
        job.optimizer,
        config.optim.max_grad_norm,
        state=state,
        mismatched=cut_mismatched(groups, config.objective, job.policy, config.layout, job.processes),
        processes=job.processes,
        router=make_router_loss(job.policy),
    )
    if job.anchors.following is not None:
        follow(job.anchors.following, job.policy, step, config.reference)
    use = _use(job, pieces, taken, started)
    counters = replace(
        counters,
        step=step,
        num_tokens=counters.num_tokens + use.tokens,
        prompts_seen=counters.prompts_seen + taken.prompts_seen,
        samples_drawn=counters.samples_drawn + taken.samples_drawn,
        reward_queries=counters.reward_queries + taken.reward_queries,
        seconds=counters.seconds + use.seconds,
    )
    row = _row(job, counters, taken, result, rate, use)
    if result.expert_loads:
        row["router/load"] = list(result.expert_loads)
    for completion in taken.completions:
        run.append("completions.jsonl", completion)
    run.append("metrics.jsonl", row)
    report.update("train", step, job.num_steps, f"loss {result.loss:.4f}")
    return counters, result.state, row


def _pieces(job: TrainingJob, groups: Sequence[Group]) -> list[MicroBatch]:
    """This process's share of the groups in micro-batches, as many as each of the other processes has."""
    config, read_last = job.config, reads_last(job.config.objective)
    kind, mine = config.objective.signal, share_of(groups, job.policy, job.processes)
    pieces = cut_step(mine, kind, job.policy, config.layout, read_last)
    return evened(pieces, groups, kind, job.policy, config.layout, job.processes, read_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """Time and arithmetic of a step."""

    tokens: int
    computed: float  # positions, with what is computed twice and padding
    seconds: float  # with the collection of samples
    mfu: float


def _use(job: TrainingJob, pieces: Sequence[MicroBatch], taken: Taken, started: float) -> _Use:
    batches = [piece.content.batch for piece in pieces if isinstance(piece.content, PackedContent)]
    computed = job.processes.total(sum(batch.num_positions for batch in batches))
    updating = max(job.processes.gather(time.perf_counter() - started))
    operations = work_of(Shape.of(job.policy.model), taken.groups).training
    return _Use(
        tokens=num_positions(taken.groups, job.policy.sharing, reads_last(job.config.objective)),
        computed=computed,
        seconds=updating + taken.metrics.get("collect_time", 0.0),
        mfu=utilisation(operations, updating, job.policy.device, job.config.precision, job.processes.size),
    )


def _row(
    job: TrainingJob, counters: Counters, taken: Taken, result: StepResult, rate: float, use: _Use
) -> dict[str, Any]:
    return {
        "step": counters.step,
        "phase": "train",
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "learning_rate": rate,
        "epoch": round(counters.step / job.source.steps_per_epoch, 6),
        "num_tokens": counters.num_tokens,
        "prompts_seen": counters.prompts_seen,
        "samples_drawn": counters.samples_drawn,
        "reward_queries": counters.reward_queries,
        "step_time": use.seconds,
        "tokens_per_second": use.tokens / use.seconds,
        "packing": use.tokens / use.computed,
        "mfu": use.mfu,
        **common_ends(taken.groups),
        **result.metrics,
        **taken.metrics,
    }
