"""Training runs: start, resume, and the loop over optimizer steps."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from preftune.data.records import write_bad_rows
from preftune.errors import ConfigError, ElsewhereError, LostError, StorageError, TrainingError, memory_errors
from preftune.objectives import State
from preftune.objectives.remedies import remedies
from preftune.progress import Reporter
from preftune.report.page import REPORT_NAME
from preftune.train.anchors import following_tensors
from preftune.train.checkpoint import Counters, load_checkpoint
from preftune.train.ending import (
    complete,
    finished,
    interrupted,
    leave_model,
    save_after_error,
    status_after_error,
    status_after_loss,
)
from preftune.train.health_monitor import Watch
from preftune.train.held_out import check_best_metric, log_evaluation
from preftune.train.interruption import Interruption, interruption
from preftune.train.models import layout_record
from preftune.train.optim import HalfStep
from preftune.train.options import TrainConfig
from preftune.train.processes import ALONE, Processes, lost_errors
from preftune.train.recovery import (
    Comparison,
    check_end,
    check_final,
    claim_new,
    claim_old,
    latest_start,
    manifest_of,
)
from preftune.train.result import RunResult
from preftune.train.runlog import RunFolder, check_room, create_run, environment, forget_run, to_plain
from preftune.train.saving import bytes_needed, keep_state
from preftune.train.setup import TrainingJob, build_job
from preftune.train.sources import Taken
from preftune.train.trackers import following_trackers
from preftune.train.update import train_step

OnStep = Callable[[Mapping[str, Any]], object]
"""Called after each step with its metrics; a true value ends the run there, as its last step would."""


def train(
    config: TrainConfig, *, quiet: bool = False, processes: Processes = ALONE, on_step: OnStep | None = None
) -> RunResult:
    """Train from the start, into a new run folder."""
    processes = _arranged(processes, config.device, config.shard.mode)
    if config.shard.mode != "none" and not processes.lockstep:
        raise ConfigError(
            "One process has nothing to share its weights with",
            got=f"shard.mode {config.shard.mode}",
            expected="several processes",
            do="Start with: torchrun --nproc_per_node N -m preftune train ..., or leave --shard out",
        )
    if config.process_minutes != TrainConfig.process_minutes and processes.size == 1:
        raise ConfigError(
            "One process waits for no others",
            got=f"process_minutes {config.process_minutes:g}",
            do="Leave it out",
        )
    report = Reporter(quiet=quiet or not processes.is_main)
    with ExitStack() as stack:
        processes.from_main(lambda: claim_new(stack, config.output))
        identity = Comparison(processes=processes, report=report, folder=Path(config.output))
        with memory_errors():
            job = build_job(config, report, processes, check=identity.check)
            check_best_metric(job)
        processes.from_main(lambda: check_room(config.output, bytes_needed(job)))
        with interruption() as stop:
            run = _created(job, identity)
            return run_loop(job, run, report, Counters(), None, stop, on_step)


def resume(
    config: TrainConfig,
    *,
    quiet: bool = False,
    processes: Processes = ALONE,
    allowed: frozenset[str] = frozenset(),
    skip_damaged: bool = False,
) -> RunResult:
    """Continue from the latest checkpoint of a run folder, as if the run had never stopped, or from the start if
    it has none; with any number of processes.

    What changes results since the run was started is refused unless `allowed` names it. With `skip_damaged` an
    earlier checkpoint is taken where the latest are damaged.
    """
    run = RunFolder(path=Path(config.output), writes=processes.is_main)
    report = Reporter(quiet=quiet or not processes.is_main)
    processes = _arranged(processes, config.device, config.shard.mode)
    with ExitStack() as stack:
        processes.from_main(lambda: claim_old(stack, run))
        if processes.from_main(lambda: _is_over(run)):
            return processes.from_main(lambda: complete(run, report))
        start = processes.from_main(lambda: latest_start(run, skip_damaged))
        before = processes.from_main(
            lambda: manifest_of(run, config.identity_plan.settings, start, allowed, report)
        )
        identity = Comparison(
            processes=processes, report=report, folder=run.path, before=before, allowed=allowed
        )
        with memory_errors():
            job = build_job(config, report, processes, check=identity.check)
        if start is None:
            report.note("the run has no whole checkpoint: it starts again")
            processes.from_main(lambda: run.restore_logs(-1, {}, repairs=False))
            with interruption() as stop:
                return run_loop(job, _created(job, identity), report, Counters(), None, stop)
        following = following_tensors(job.anchors.following, job.policy)
        counters, extra = load_checkpoint(
            start.path, job.policy.trainable(), job.optimizer, following, start.state
        )
        check_end(counters, job.num_steps)
        if job.samples is not None:
            job.samples.load(extra["source"])
        if job.best is not None:
            job.best.load(extra["best"])
        repaired = processes.from_main(
            lambda: run.restore_logs(counters.step, start.state.logs, repairs="log" in allowed)
        )
        processes.from_main(lambda: identity.record(run, counters.step, tuple(repaired)))
        for note in [*start.notes, *repaired, f"resumed at step {counters.step} of {job.num_steps}"]:
            report.note(note)
        with interruption() as stop:
            run.set_state("running", counters.step)
            return run_loop(job, run, report, counters, extra["estimators"] or None, stop)


def train_or_resume(config: TrainConfig, *, quiet: bool = False) -> RunResult:
    """A run inside a larger output: started, resumed, completed, or only read, whichever its folder needs."""
    run = RunFolder(path=Path(config.output))
    if run.is_complete() and run.state() == "finished" and (run.path / REPORT_NAME).is_file():
        check_final(run)
        return RunResult(folder=run.path, final=run.final, step=0, state="finished", evaluation={})
    if (run.path / "config.yaml").is_file():
        return resume(config, quiet=quiet)
    forget_run(run.path)
    return train(config, quiet=quiet)


def _is_over(run: RunFolder) -> bool:
    """Whether nothing is left to train; an error if nothing is left to do at all."""
    if not run.is_complete():  # not yet, or its model was removed
        return False
    check_final(run)
    if run.state() == "finished" and (run.path / REPORT_NAME).is_file():
        raise ConfigError(
            f"The run {run.path} is finished",
            got=f"its model in {run.final}",
            do="Nothing is left to resume; start a new run to train further",
        )
    return True


def _created(job: TrainingJob, identity: Comparison) -> RunFolder:
    """The run folder with what is known before the first step."""
    config, processes = job.config, job.processes
    parameters = sum(p.numel() for p in job.policy.model.parameters())
    trainable = sum(p.numel() for p in job.policy.trainable().values())
    around = environment(str(job.policy.device), parameters, trainable) | {
        "layout": layout_record(job.policy),
        "processes": processes.size,
        "held_out": len(job.eval_groups),
        "objective": asdict(remedies(config.objective)),
    }
    run = create_run(config.output, config, around, writes=processes.is_main)
    try:
        identity.record(run)
        if processes.is_main and job.prepared.bad_rows:
            write_bad_rows(run.path / "bad_rows.jsonl", job.prepared.bad_rows)
        report = job.prepared.report
        run.write_json("data_report.json", report.as_dict() | {"lines": report.lines()})
    except BaseException as error:
        with suppress(StorageError):
            run.set_state(*status_after_error(error, 0, run))
        raise
    return run


def _arranged(processes: Processes, device: str, shard_mode: str) -> Processes:
    """In lockstep if the model is in shards. A run that continues in one process keeps its settings, and its
    model whole.
    """
    if processes.size > 1 and ":" in device:
        raise ConfigError(
            "Several processes cannot share one device",
            got=f"device {device}",
            expected="auto, cpu or cuda",
            do="Choose the GPUs with CUDA_VISIBLE_DEVICES; each process takes its own",
        )
    return replace(processes, lockstep=shard_mode == "full" and processes.size > 1)


def run_loop(
    job: TrainingJob,
    run: RunFolder,
    report: Reporter,
    counters: Counters,
    state: State | None,
    stop: Interruption,
    on_step: OnStep | None = None,
) -> RunResult:
    """Train until the end, an interruption or an error; each leaves a run folder that states what to do next."""
    facts = asdict(remedies(job.config.objective))
    watch = Watch(run=run, config=to_plain(job.config), facts=facts, report=report)
    loop = _Loop(
        job=job,
        run=run,
        report=report,
        watch=watch,
        half=HalfStep(job.optimizer),
        stop=stop,
        on_step=on_step,
        counters=counters,
        state=state,
        last=job.num_steps,
    )
    try:
        with (
            lost_errors(job.processes, f"resume the run: preftune train --resume {run.path}"),
            following_trackers(job.config.report_to, run, to_plain(job.config), counters.step, report),
        ):
            with memory_errors():
                loop.evaluate_start()
                loop.run_steps()
            with stop.postponed():
                return loop.end()
    except LostError as error:
        status_after_loss(error, loop.counters.step, run)
        raise
    except TrainingError as error:
        kept = loop.save_after(error)
        run.set_state("failed", loop.counters.step, str(error))
        if isinstance(error, ElsewhereError):
            raise
        raise type(error)(f"Step {loop.counters.step + 1} stopped: {error}{kept}") from error
    except BaseException as error:
        with suppress(StorageError):  # the disk that has no room for a checkpoint may have none for this
            run.set_state(*status_after_error(error, loop.counters.step, run))
        raise
    finally:
        if job.samples is not None:
            job.samples.close()
        report.close()


@dataclass(kw_only=True)
class _Loop:
    """A run between its first step and its last."""

    job: TrainingJob
    run: RunFolder
    report: Reporter
    watch: Watch
    half: HalfStep
    stop: Interruption
    on_step: OnStep | None
    counters: Counters
    state: State | None  # of the objective's estimators
    last: int  # step after which the run ends
    evaluation: dict[str, float] = field(default_factory=dict)  # the latest

    @property
    def between_halves(self) -> bool:
        """Whether the latest step is the first of two halves: such weights are neither saved nor kept."""
        return self.job.config.optim.extragradient and self.counters.step % 2 == 1

    def evaluate_start(self) -> None:
        """Evaluate before the first step; after a resumption where the evaluation of this step is missing."""
        job, step = self.job, self.counters.step
        due = job.eval_groups and (step % job.eval_every == 0 or step == self.last)
        if step == 0 or (due and job.processes.from_main(lambda: self.watch.lacks(step))):
            self._evaluate()

    def run_steps(self) -> None:
        """Step until the last step or an interruption."""
        job = self.job
        self.report.update("train", self.counters.step, job.num_steps)
        while self.counters.step < self.last and (
            self.between_halves or not job.processes.any(self.stop.requested)
        ):
            taken = job.source.supply(self.counters.step + 1)
            if job.config.optim.extragradient:
                self.half.put_back() if self.between_halves else self.half.keep()
            if not taken.groups:
                self._end_without_groups()
                return
            self._step(taken)

    def _end_without_groups(self) -> None:
        step = self.counters.step
        self.report.note(
            f"step {step}: all completions of a prompt have the same reward; nothing is left to learn"
        )
        self.last = step
        if step % self.job.eval_every:
            self._evaluate()

    def _step(self, taken: Taken) -> None:
        """One step, and what is due after it: evaluation, checkpoint, the end of the run."""
        job, run = self.job, self.run
        self.counters, self.state, row = train_step(job, run, self.report, self.counters, self.state, taken)
        step, save_every = self.counters.step, job.config.save_every
        if self.on_step is not None and self.on_step(MappingProxyType(row)):
            self.last = step
        if not job.budget.has_room(self.counters, job.source.draws(step + 1)):
            self.last = step
        if step % job.eval_every == 0 or step == self.last:
            self._evaluate()
            if job.best is not None and job.best.exhausted:
                self.last = step
        if save_every and step % save_every == 0 and step < self.last:
            with self.stop.postponed():
                keep_state(job, run, self.counters, self.state)
                run.set_state("running", step)

    def _evaluate(self) -> None:
        step = self.counters.step
        self.evaluation = log_evaluation(self.job, self.run, self.report, step, self.state, self.watch)

    def end(self) -> RunResult:
        """Save the model, or after an interruption a checkpoint."""
        job, run, step = self.job, self.run, self.counters.step
        if step < self.last:
            keep_state(job, run, self.counters, self.state)
            job.processes.from_main(self.watch.write)
            return interrupted(run, self.report, step, self.evaluation)
        leave_model(job, run, self.report, self.watch)
        return finished(run, self.report, step, self.evaluation)

    def save_after(self, error: TrainingError) -> str:
        """Save a checkpoint after an error, where there is something to save; the sentence that states where."""
        begun = self.counters.step or self.job.samples
        if begun and not self.between_halves and (error.saves or not self.job.processes.lockstep):
            with self.stop.postponed():
                return save_after_error(self.job, self.run, self.counters, self.state)
        return ""
