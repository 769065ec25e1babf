"""How a run ends: with a model, with a checkpoint to resume from, or with an error."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from preftune.errors import LostError, PreftuneError, StorageError, memory_errors, without_secrets
from preftune.objectives import State
from preftune.progress import Reporter
from preftune.report.page import write_report
from preftune.report.read import read_run
from preftune.storage import locked_folder
from preftune.train.checkpoint import Counters
from preftune.train.health_monitor import Watch
from preftune.train.optimizers import averaged_weights
from preftune.train.result import RunResult
from preftune.train.runlog import RunFolder
from preftune.train.saving import install_final, save_state
from preftune.train.setup import TrainingJob
from preftune.train.token_table import write_tokens


def leave_model(job: TrainingJob, run: RunFolder, report: Reporter, watch: Watch) -> None:
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


def save_after_error(job: TrainingJob, run: RunFolder, counters: Counters, state: State | None) -> str:
    """Save what there is after an error, and state where."""
    try:
        return f" The weights before it are in {save_state(job, run, counters, state)}."
    except StorageError as error:
        return f" The weights before it could not be saved: {error}"


def status_after_error(error: BaseException, step: int, run: RunFolder) -> tuple[str, int, str]:
    """State, step and message for status.json after an error that ends the run."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", step, f"Stopped at once; resume with: preftune train --resume {run.path}"
    text = str(error) if isinstance(error, PreftuneError) else f"{type(error).__name__}: {error}"
    text = without_secrets(text)
    return "failed", step, " ".join(text.split())[:500]


def status_after_loss(error: LostError, step: int, run: RunFolder) -> None:
    """After the loss of another process, status.json states it: by the main process, or by another one if the main
    process has ended, which has freed the lock of the folder.
    """
    with suppress(StorageError):
        if run.writes:
            run.set_state("failed", step, str(error))
        elif (run.path / "config.yaml").is_file():
            with locked_folder(run.path):
                if run.state() == "running":
                    replace(run, writes=True).set_state("failed", step, str(error))


def interrupted(run: RunFolder, report: Reporter, step: int, evaluation: Mapping[str, float]) -> RunResult:
    how = f"preftune train --resume {run.path}"
    run.set_state("interrupted", step, f"Resume with: {how}")
    report.note(f"\nInterrupted after step {step}; a checkpoint is saved. Resume with:\n  {how}")
    return RunResult(folder=run.path, final=None, step=step, state="interrupted", evaluation=evaluation)


def finished(run: RunFolder, report: Reporter, step: int, evaluation: Mapping[str, float]) -> RunResult:
    run.set_state("finished", step)
    if run.writes:
        write_report(run.path)
    report.note(f"finished: model in {run.final}, report in {run.path / 'report.html'}")
    return RunResult(folder=run.path, final=run.final, step=step, state="finished", evaluation=evaluation)


def complete(run: RunFolder, report: Reporter) -> RunResult:
    """Status and report of a run whose final/ is in place."""
    return finished(run, report, read_run(run.path).last_step, {})
