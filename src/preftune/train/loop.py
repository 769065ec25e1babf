"""The loop: the only one."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from preftune.data.records import write_bad_rows
from preftune.errors import (
    ConfigError,
    ElsewhereError,
    PreftuneError,
    StorageError,
    TrainingError,
    memory_errors,
)
from preftune.health.conditions import health_numbers
from preftune.model.cost import Shape, utilisation, work_of
from preftune.model.reference import REFERENCE_SCORES
from preftune.objectives import State
from preftune.objectives.remedies import remedies
from preftune.progress import Reporter
from preftune.report.page import REPORT_NAME, write_report
from preftune.report.read import read_run
from preftune.train.anchors import follow, following_tensors
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
from preftune.train.checkpoint import Counters, load_checkpoint
from preftune.train.health_monitor import Watch, common_ends
from preftune.train.held_out import check_best_metric, held_out_metrics
from preftune.train.interruption import Interruption, interruption
from preftune.train.optim import HalfStep, learning_rate
from preftune.train.optimizers import averaged_weights, set_learning_rate
from preftune.train.options import TrainConfig
from preftune.train.processes import ALONE, Processes
from preftune.train.recovery import (
    Comparison,
    check_end,
    check_final,
    claim_new,
    claim_old,
    latest_start,
    manifest_of,
)
from preftune.train.runlog import RunFolder, check_room, create_run, environment, forget_run, to_plain
from preftune.train.saving import bytes_needed, install_final, keep_state, save_state
from preftune.train.setup import TrainingJob, build_job
from preftune.train.sources import Taken
from preftune.train.step import run_step
from preftune.train.token_table import write_tokens

OnStep = Callable[[Mapping[str, Any]], object]
"""Called after each step with its metrics; a true value ends the run there, as its last step would."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The end of a run."""

    folder: Path
    final: Path | None  # the tuned model; None when the run was interrupted
    step: int
    state: str  # "finished" or "interrupted"
    evaluation: Mapping[str, float]  # of the last evaluation on held-out data, {} without

    @property
    def metrics(self) -> Any:
        """Every logged number as a pandas DataFrame: a row for each step, evaluations in the columns eval_*."""
        import pandas

        run = read_run(self.folder)
        columns = {name: pandas.Series(one.values, one.steps) for name, one in run.train.items()}
        columns |= {
            f"eval_{name}": pandas.Series(one.values, one.steps) for name, one in run.evaluation.items()
        }
        return pandas.DataFrame(columns).rename_axis("step")

    def plot(self, *names: str) -> Any:
        """A matplotlib figure of these metrics over the steps; the loss if none is named."""
        from matplotlib.figure import Figure

        table, names = self.metrics, names or ("loss",)
        if unknown := [name for name in names if name not in table]:
            raise ConfigError("The run has no such metric", got=unknown[0], expected=", ".join(table.columns))
        figure = Figure(figsize=(6, 2.4 * len(names)), layout="constrained")
        for place, name in enumerate(names):
            axes = figure.add_subplot(len(names), 1, place + 1)
            axes.plot(table[name].dropna(), marker="o", markersize=3)
            axes.set(xlabel="step", ylabel=name)
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        numbers = "".join(
            f"<tr><td>{escape(k)}</td><td>{v:.4f}</td></tr>" for k, v in self.evaluation.items()
        )
        return (
            f"<p>{escape(self.state)} after step {self.step}: {escape(str(self.folder))}</p>"
            f"<table>{numbers}</table><p>report: {escape(str(self.folder / REPORT_NAME))}</p>"
        )


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
    earlier checkpoint is taken where the latest ones are damaged.
    """
    run = RunFolder(path=Path(config.output), writes=processes.is_main)
    report = Reporter(quiet=quiet or not processes.is_main)
    processes = _arranged(processes, config.device, config.shard.mode)
    with ExitStack() as stack:
        processes.from_main(lambda: claim_old(stack, run))
        if processes.from_main(lambda: _is_over(run)):
            return processes.from_main(lambda: complete(run, report))
        start = processes.from_main(lambda: latest_start(run, skip_damaged))
        before = processes.from_main(lambda: manifest_of(run, config, start, allowed, report))
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


def complete(run: RunFolder, report: Reporter) -> RunResult:
    """Status and report of a run whose final/ is in place."""
    return _tell_finished(run, report, read_run(run.path).last_step, {})


def _created(job: TrainingJob, identity: Comparison) -> RunFolder:
    """The run folder with what is known before the first step."""
    config, processes = job.config, job.processes
    parameters = sum(p.numel() for p in job.policy.model.parameters())
    trainable = sum(p.numel() for p in job.policy.trainable().values())
    around = environment(str(job.policy.device), parameters, trainable) | {
        "processes": processes.size,
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
            run.set_state(*_ending(error, 0, run))
        raise
    return run


def _arranged(processes: Processes, device: str, shard_mode: str) -> Processes:
    """In lockstep if the model is in shards. A run that goes on in one process keeps its settings, and its
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
    """Steps until the end, an interruption, or an error; each leaves a run folder that says what to do next."""
    config, processes = job.config, job.processes
    evaluation: dict[str, float] = {}
    eval_every = job.eval_every
    last, half = job.num_steps, HalfStep(job.optimizer)
    facts = asdict(remedies(config.objective))
    watch = Watch(run=run, config=to_plain(config), facts=facts, report=report)

    def between() -> bool:
        """After a half step: such weights are neither saved nor left."""
        return config.optim.extragradient and counters.step % 2 == 1

    try:
        with memory_errors():
            due = job.eval_groups and (counters.step % eval_every == 0 or counters.step == last)
            if counters.step == 0 or (due and processes.from_main(lambda: watch.lacks(counters.step))):
                evaluation = _evaluate(job, run, report, counters.step, state, watch)
            report.update("train", counters.step, job.num_steps)
            while counters.step < last and (between() or not processes.any(stop.requested)):
                taken = job.source.supply(counters.step + 1)
                if config.optim.extragradient:
                    half.put_back() if between() else half.keep()
                if not taken.groups:
                    report.note(
                        f"step {counters.step}: all completions of a prompt have the same reward; nothing is left to learn"
                    )
                    last = counters.step
                    if last % eval_every:
                        evaluation = _evaluate(job, run, report, last, state, watch)
                    break
                counters, state, row = _train_step(job, run, report, counters, state, taken)
                if on_step is not None and on_step(MappingProxyType(row)):
                    last = counters.step
                if not job.budget.has_room(counters, job.source.draws(counters.step + 1)):
                    last = counters.step
                if counters.step % eval_every == 0 or counters.step == last:
                    evaluation = _evaluate(job, run, report, counters.step, state, watch)
                    if job.best is not None and job.best.exhausted:
                        last = counters.step
                if config.save_every and counters.step % config.save_every == 0 and counters.step < last:
                    with stop.postponed():
                        keep_state(job, run, counters, state)
                        run.set_state("running", counters.step)
        with stop.postponed():
            if counters.step < last:
                keep_state(job, run, counters, state)
                processes.from_main(watch.write)
                return _tell_interrupted(run, report, counters.step, evaluation)
            _leave_model(job, run, report, watch)
            return _tell_finished(run, report, counters.step, evaluation)
    except TrainingError as error:
        kept = ""
        if (counters.step or job.samples) and not between() and (error.saves or not processes.lockstep):
            with stop.postponed():
                kept = _kept(job, run, counters, state)
        run.set_state("failed", counters.step, str(error))
        if isinstance(error, ElsewhereError):
            raise
        raise type(error)(f"Step {counters.step + 1} stopped: {error}{kept}") from error
    except BaseException as error:
        with suppress(StorageError):  # the disk that has no room for a checkpoint may have none for this
            run.set_state(*_ending(error, counters.step, run))
        raise
    finally:
        report.close()


def _leave_model(job: TrainingJob, run: RunFolder, report: Reporter, watch: Watch) -> None:
    """final/ and what is measured on it: of the best weights where the run keeps them."""
    with averaged_weights(job.optimizer), memory_errors():
        if job.best is not None:
            job.best.put_back(job.policy)
            run.write_json("best.json", job.best.summary())
            report.note(job.best.line)
        write_tokens(job, run)
        job.processes.from_main(watch.write)
        install_final(job, run)
        if job.best is not None:
            job.processes.from_main(job.best.clear)


def _kept(job: TrainingJob, run: RunFolder, counters: Counters, state: State | None) -> str:
    """Save what there is after an error, and say where."""
    try:
        return f" The weights before it are in {save_state(job, run, counters, state)}."
    except StorageError as error:
        return f" The weights before it could not be saved: {error}"


def _ending(error: BaseException, step: int, run: RunFolder) -> tuple[str, int, str]:
    """State, step and message for status.json after an error that ends the run."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", step, f"Stopped at once; resume with: preftune train --resume {run.path}"
    told = str(error) if isinstance(error, PreftuneError) else f"{type(error).__name__}: {error}"
    return "failed", step, " ".join(told.split())[:500]


def _tell_interrupted(
    run: RunFolder, report: Reporter, step: int, evaluation: Mapping[str, float]
) -> RunResult:
    how = f"preftune train --resume {run.path}"
    run.set_state("interrupted", step, f"Resume with: {how}")
    report.note(f"\nInterrupted after step {step}; a checkpoint is saved. Resume with:\n  {how}")
    return RunResult(folder=run.path, final=None, step=step, state="interrupted", evaluation=evaluation)


def _tell_finished(run: RunFolder, report: Reporter, step: int, evaluation: Mapping[str, float]) -> RunResult:
    run.set_state("finished", step)
    if run.writes:
        write_report(run.path)
    report.note(f"finished: model in {run.final}, report in {run.path / 'report.html'}")
    return RunResult(folder=run.path, final=run.final, step=step, state="finished", evaluation=evaluation)


def _train_step(
    job: TrainingJob, run: RunFolder, report: Reporter, counters: Counters, state: State | None, taken: Taken
) -> tuple[Counters, State, dict[str, Any]]:
    config, step, groups = job.config, counters.step + 1, taken.groups
    started = time.perf_counter()
    mine = share_of(groups, job.policy, job.processes)
    kind, read_last = config.objective.signal, reads_last(config.objective)
    pieces = cut_step(mine, kind, job.policy, config.layout, read_last)
    pieces = evened(pieces, groups, kind, job.policy, config.layout, job.processes, read_last)
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
    batches = [piece.content.batch for piece in pieces if isinstance(piece.content, PackedContent)]
    tokens = num_positions(groups, job.policy.sharing, read_last)
    computed = job.processes.total(sum(batch.num_positions for batch in batches))
    updating = max(job.processes.gather(time.perf_counter() - started))
    seconds = updating + taken.metrics.get("collect_time", 0.0)
    operations = work_of(Shape.of(job.policy.model), groups).training
    used = utilisation(operations, updating, job.policy.device, config.precision, job.processes.size)
    counters = replace(
        counters,
        step=step,
        num_tokens=counters.num_tokens + tokens,
        prompts_seen=counters.prompts_seen + taken.prompts_seen,
        samples_drawn=counters.samples_drawn + taken.samples_drawn,
        reward_queries=counters.reward_queries + taken.reward_queries,
        seconds=counters.seconds + seconds,
    )
    for row in taken.completions:
        run.append("completions.jsonl", row)
    row = {
        "step": step,
        "phase": "train",
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "learning_rate": rate,
        "epoch": round(step / job.source.steps_per_epoch, 6),
        "num_tokens": counters.num_tokens,
        "prompts_seen": counters.prompts_seen,
        "samples_drawn": counters.samples_drawn,
        "reward_queries": counters.reward_queries,
        "step_time": seconds,
        "tokens_per_second": tokens / seconds,
        "packing": tokens / computed,
        "mfu": used,
        **common_ends(groups),
        **result.metrics,
        **taken.metrics,
    }
    if result.expert_loads:
        row["router/load"] = list(result.expert_loads)
    run.append("metrics.jsonl", row)
    report.update("train", step, job.num_steps, f"loss {result.loss:.4f}")
    return counters, result.state, row


def _evaluate(
    job: TrainingJob, run: RunFolder, report: Reporter, step: int, state: State | None, watch: Watch
) -> dict[str, float]:
    """Held-out metrics and the run's health, in one row; without held-out data the health alone, which needs
    no row.
    """
    if not job.eval_groups:
        if run.writes:
            watch.findings()
        return {}
    with averaged_weights(job.optimizer):
        metrics, used = held_out_metrics(job, report, step, state)
        if job.best is not None:
            job.best.see(step, metrics, job.policy)
    row = {"step": step, "phase": "eval"} | {f"eval_{k}": v for k, v in metrics.items()} | used
    if run.writes:
        run.append("metrics.jsonl", row | health_numbers(watch.findings(row)))
    shown = [
        f"{k} {metrics[k]:.4f}"
        for k in ("loss", "rewards/margins", "rewards/accuracies", "reward", "kl")
        if k in metrics
    ]
    if shown:
        report.note(f"step {step}: held-out " + ", ".join(shown))
    return metrics
