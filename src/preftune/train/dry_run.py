"""Predicted memory and time of a run, from a few groups that are really computed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from preftune.errors import ConfigError, TrainingError, memory_errors
from preftune.model.cost import Shape, finish, product_rate, work_of
from preftune.model.kernels.recompute import kept_as
from preftune.model.layout import split_micro_batches
from preftune.model.reference import REFERENCE_SCORES
from preftune.progress import Reporter
from preftune.train.anchors import chosen_mode
from preftune.train.batches import (
    ANCHORED,
    PackedContent,
    cut_mismatched,
    cut_step,
    make_router_loss,
    make_score,
    num_positions,
    reads_last,
)
from preftune.train.device_memory import PeakMemory, available_bytes, in_memory
from preftune.train.onpolicy.source import OnPolicySource
from preftune.train.optimizers import MOMENT_BYTES, set_learning_rate
from preftune.train.options import TrainConfig
from preftune.train.processes import Processes
from preftune.train.setup import TrainingJob, build_job, scored_groups
from preftune.train.step import run_step
from preftune.types import Group

_MOST_STEPS = 2000
"""Steps whose groups are counted one by one; a longer run is taken to go on as it began."""
_FRAGMENTS = 1.05
"""Memory that torch reserves on a GPU over what tensors take: fragments and workspaces. Not measured."""
_LEAST_TOKENS = 64
"""Smaller micro-batches save nothing worth their calls."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes at the peak on the device that computes (of the whole process where that is the CPU), and
    seconds.
    """

    device: str
    num_steps: int
    peak_bytes: int
    free_bytes: int  # what the process holds now and may still get
    largest_positions: int  # of a micro-batch
    bytes_per_position: float  # of those that are kept
    start_seconds: float  # until the first step, reference included
    step_seconds: float  # mean, drawing included
    evaluation_seconds: float  # all of them
    total_seconds: float
    mfu: float  # of an update

    def lines(self) -> list[str]:
        """For a terminal."""
        hours, minutes = divmod(round(self.total_seconds / 60), 60)
        total = f"{hours} h {minutes} min" if hours else f"{self.total_seconds / 60:.1f} min"
        return [
            f"memory  {_gib(self.peak_bytes)} at the peak, of {_gib(self.free_bytes)} on {self.device}; "
            f"{self.bytes_per_position / 2**20:.2f} MiB a position, {self.largest_positions} in the largest micro-batch",
            f"step    {self.step_seconds:.2f} s, an update at {self.mfu:.0%} of the machine's matrix products",
            f"total   {total}: {self.num_steps} steps, {self.start_seconds:.0f} s to start, "
            f"{self.evaluation_seconds:.0f} s of evaluations",
        ]


def dry_run(config: TrainConfig, report: Reporter, processes: Processes) -> Forecast:
    """A forecast for this run on this machine; an error that states what to change if it will not fit.

    No run folder is made, no weight moves. Data, model and reference are made ready as for the run; the
    smallest group and the first step are computed with their gradient, and the largest micro-batch, the whole
    run's arithmetic and its evaluations follow from these. On-policy, one
    collection is drawn and scored, so the reward is called.
    """
    if processes.size > 1 or config.shard.mode != "none":
        raise ConfigError(
            "A dry run is for one process",
            got=f"{processes.size} processes, shard.mode {config.shard.mode}",
            do="Start it without torchrun and shards; docs/scaling.md describes what these change",
        )
    with memory_errors():
        started = time.perf_counter()
        job = build_job(config, report, processes, rehearses=True)
        ready = time.perf_counter() - started
        return _forecast(job, ready)


def _forecast(job: TrainingJob, ready: float) -> Forecast:
    policy, config, device = job.policy, job.config, job.policy.device
    moments = MOMENT_BYTES[config.optim.name] / 4  # in units of a weight, of which adamw has two
    to_come = sum(
        round(p.numel() * ((p.grad_dtype or p.dtype).itemsize + moments * p.element_size()))
        for p in policy.trainable().values()
    )
    free = in_memory(device) + available_bytes(device)
    _check_room(
        in_memory(device) + to_come,
        free,
        "weights, gradient and moments alone",
        "Set --lora.rank 16, or choose a smaller model or a larger machine",
    )
    with PeakMemory(device) as sampled:
        began = time.perf_counter()
        taken = job.source.supply(1)
        drawing = time.perf_counter() - began if job.samples is not None else 0.0
    small, typical = [min(taken.groups, key=lambda g: num_positions([g], policy.sharing))], taken.groups
    warm_up = _update(job, small)  # the optimizer makes its moments
    first, second = _update(job, small), _update(job, typical)
    largest, whole_work = _whole(job, taken.groups)
    low, middle, high = (
        kept_as(n, policy.kept_positions) for n in (first.positions, second.positions, largest)
    )
    slope = max(0.0, (second.peak - first.peak) / max(1.0, middle - low))
    expected = int(max(second.peak + slope * max(0.0, high - middle), sampled.bytes, warm_up.peak))
    if device.type == "cuda":
        expected = int(expected * _FRAGMENTS)
    limit = int(middle + (free - second.peak) / slope) if slope else 0
    smaller = (
        f"Set --layout.micro_batch_tokens {limit}"
        if _LEAST_TOKENS <= limit < config.layout.micro_batch_tokens
        else (
            "Set --gradient_checkpointing true, lower --rows.max_length, or train adapters with --lora.rank 16"
        )
    )
    _check_room(expected, free, f"a micro-batch of {largest} positions", smaller)

    shape = Shape.of(policy.model)
    rate = work_of(shape, typical).training / max(1e-9, second.computing)
    forward_rate = work_of(shape, typical).forward / max(1e-9, _forward_seconds(job, typical))
    step = whole_work / job.num_steps / rate + second.moving + drawing / _steps_per_draw(job)
    evaluations = _evaluation_seconds(job, forward_rate, drawing, len(taken.groups))
    reference = _reference_seconds(job, forward_rate)
    return Forecast(
        device=str(device),
        num_steps=job.num_steps,
        peak_bytes=expected,
        free_bytes=free,
        largest_positions=largest,
        bytes_per_position=slope,
        start_seconds=ready + reference,
        step_seconds=step,
        evaluation_seconds=evaluations,
        total_seconds=ready + reference + evaluations + step * job.num_steps,
        mfu=rate / product_rate(device, config.precision),
    )


def _check_room(needed: int, free: int, what: str, do: str) -> None:
    if needed > free:
        raise TrainingError(
            f"The run will not fit into memory with {what}",
            got=f"{_gib(needed)}",
            expected=f"at most {_gib(free)}",
            do=do,
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


# --- what is computed ---


@dataclass(frozen=True, kw_only=True)
class _Measured:
    positions: int  # of the largest micro-batch
    peak: int  # bytes
    computing: float  # seconds of loss and gradient, a live reference included
    moving: float  # seconds of clipping and the optimizer


def _update(job: TrainingJob, groups: Sequence[Group]) -> _Measured:
    """A real update on these groups as one step, at a learning rate of 0, which also scales the decay."""
    config, policy = job.config, job.policy
    pieces = cut_step(groups, config.objective.signal, policy, config.layout, reads_last(config.objective))
    needed = (
        job.anchors if config.objective.needs & REFERENCE_SCORES else replace(job.anchors, reference=None)
    )
    parameters, limit = list(policy.trainable().values()), config.optim.max_grad_norm
    set_learning_rate(job.optimizer, 0.0)
    with PeakMemory(policy.device) as peak:
        began = time.perf_counter()
        run_step(
            pieces,
            config.objective,
            make_score(policy, config.objective, needed, config.scored_at),
            parameters,
            job.optimizer,
            limit,
            mismatched=cut_mismatched(groups, config.objective, policy, config.layout),
            router=make_router_loss(policy),
        )
        finish(policy.device)
        done = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(parameters, limit or float("inf"))
    job.optimizer.step()
    finish(policy.device)
    moving = time.perf_counter() - done
    batches = [piece.content.batch for piece in pieces if isinstance(piece.content, PackedContent)]
    return _Measured(
        positions=max(batch.num_real_positions for batch in batches),
        peak=peak.bytes,
        computing=max(0.0, done - began - moving),
        moving=moving,
    )


@torch.no_grad()
def _forward_seconds(job: TrainingJob, groups: Sequence[Group]) -> float:
    score = make_score(job.policy, job.config.objective, replace(job.anchors, reference=None))
    started = time.perf_counter()
    for piece in cut_step(
        groups, job.config.objective.signal, job.policy, job.config.layout, reads_last(job.config.objective)
    ):
        score(piece)
    finish(job.policy.device)
    return time.perf_counter() - started


# --- what the whole run holds ---


def _whole(job: TrainingJob, drawn: Sequence[Group]) -> tuple[int, float]:
    """Positions of the run's largest micro-batch, and the operations of all its updates."""
    shape, last = Shape.of(job.policy.model), reads_last(job.config.objective)
    counted = 1 if job.samples is not None else min(job.num_steps, _MOST_STEPS)
    largest, total = 0, 0.0
    for step in range(1, counted + 1):
        groups = drawn if job.samples is not None else job.source.supply(step).groups
        total += work_of(shape, groups).training
        for indices in split_micro_batches(groups, job.config.layout, job.policy.sharing, last):
            largest = max(largest, num_positions([groups[i] for i in indices], job.policy.sharing, last))
    if job.samples is not None:  # the longest completions may yet come, and fill a micro-batch
        largest = max(largest, job.config.layout.micro_batch_tokens)
    return largest, total * job.num_steps / counted


def _steps_per_draw(job: TrainingJob) -> int:
    options, batch_size = job.config.collect, job.config.batch_size
    return options.epochs * -(-(options.prompts or batch_size) // batch_size)


def _computes_reference(job: TrainingJob) -> bool:
    """Whether the reference is computed in each step, and not before training."""
    config = job.config
    mode = chosen_mode(
        config.reference, config.objective.needs & ANCHORED, config.lora.rank > 0, job.samples is not None
    )
    return job.anchors.reference is not None and mode in ("live", "adapter")


def _evaluation_seconds(job: TrainingJob, rate: float, drawing: float, drawn: int) -> float:
    """Before the first step and each `eval_every` steps."""
    if not job.eval_groups:
        return 0.0
    count = 1 + -(-job.num_steps // job.eval_every)
    if job.samples is not None:
        return count * drawing * len(job.eval_groups) / max(1, drawn)
    return (
        count
        * (1 + _computes_reference(job))
        * work_of(Shape.of(job.policy.model), job.eval_groups).forward
        / rate
    )


def _reference_seconds(job: TrainingJob, rate: float) -> float:
    """For the pass that a cached reference takes; what is in the cache already is not known here, so this is
    the most.
    """
    if isinstance(job.source, OnPolicySource) or job.anchors.reference is None or _computes_reference(job):
        return 0.0
    groups = scored_groups(job.config.objective, job.source, job.eval_groups, job.num_steps)
    return work_of(Shape.of(job.policy.model), groups).forward / rate
