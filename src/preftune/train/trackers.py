"""Experiment trackers that follow a run: TensorBoard, Weights & Biases, MLflow and Trackio, through their libraries.

The run folder stays the record of a run; a tracker gets a copy of the numbers in metrics.jsonl. trackers.json in the
run folder holds the identifiers, so that a resumed run continues the same tracker run. A tracker that fails is
reported and left alone: it never stops a run.
"""

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from preftune.errors import ConfigError
from preftune.progress import Reporter
from preftune.train.runlog import RunFolder

PROJECT = "preftune"  # where the library's own environment variable names no project
TRACKER_IDS = "trackers.json"
End = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """An open tracker run."""

    name: str
    run_id: str  # what a resumed run gives to continue
    log: Callable[[Mapping[str, float], int], None]  # (numbers, step)
    close: Callable[[End], None]


def checked_trackers(names: Sequence[str]) -> list[str]:
    """The names, without the "none" that other tools write; names that are not known and libraries that are not
    installed are refused.
    """
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"Unknown tracker {name}", got=name, expected=", ".join(TRACKERS))
        package = TRACKERS[name][0]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"report_to {name} needs the package {package}",
                got="not installed",
                do=f"Install it with: pip install {package}",
            )
    if len(set(names)) < len(names):
        raise ConfigError("report_to names a tracker twice", got=", ".join(names))
    return names


@contextmanager
def following_trackers(
    names: Sequence[str], run: RunFolder, config: Mapping[str, Any], step: int, report: Reporter
) -> Iterator[None]:
    """Within, every row of metrics.jsonl goes to the trackers, too. `step` is the last that the run has made."""
    if not names or not run.writes:
        yield
        return
    path = run.path / TRACKER_IDS
    ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    trackers: list[Tracker] = []

    def attempt(name: str, what: str, action: Callable[[], Any]) -> Any:
        """The result of a library's call; its failure is reported, and ends the tracker."""
        try:
            return action()
        except Exception as error:
            trackers[:] = [one for one in trackers if one.name != name]
            report.note(
                f"{name} could not {what} ({' '.join(str(error).split())[:200]}); metrics.jsonl has every number"
            )

    for name in names:
        opened = attempt(name, "start", lambda name=name: TRACKERS[name][1](run, config, ids.get(name), step))
        if opened is not None:
            trackers.append(opened)
            ids[name] = opened.run_id
    run.write_json(TRACKER_IDS, ids)

    def follow(row: Mapping[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        for one in tuple(trackers):
            attempt(one.name, "log", lambda one=one: one.log(numbers, int(row["step"])))

    run.followers.append(follow)
    end: End = "failed"
    try:
        yield
        end = "interrupted" if run.state() == "interrupted" else "finished"
    except KeyboardInterrupt:
        end = "interrupted"
        raise
    finally:
        run.followers.remove(follow)
        for one in tuple(trackers):
            attempt(one.name, "finish", lambda one=one: one.close(end))


def _tensorboard(run: RunFolder, config: Mapping[str, Any], known: str | None, step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    folder = run.path / "tensorboard"
    # points after the checkpoint, which the resumed run makes again, disappear from the curves
    writer = SummaryWriter(str(folder), purge_step=None if known is None else step + 1)
    if known is None:
        writer.add_text("config", f"```\n{json.dumps(config, indent=2, default=str)}\n```")

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(name="tensorboard", run_id=folder.name, log=log, close=lambda end: writer.close())


def _wandb(run: RunFolder, config: Mapping[str, Any], known: str | None, step: int) -> Tracker:
    import wandb  # pyright: ignore[reportMissingImports]

    run_id = known or uuid.uuid4().hex[:12]
    followed = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.path.name,
        id=run_id,
        resume="allow",
        dir=str(run.path),
        config=dict(config),
        settings=wandb.Settings(silent=True, console="off"),
    )
    # wandb's own step only grows, and a resumed run repeats the steps after its checkpoint
    followed.define_metric("*", step_metric="step")

    def log(numbers: Mapping[str, float], step: int) -> None:
        followed.log({**numbers, "step": step})

    return Tracker(
        name="wandb",
        run_id=run_id,
        log=log,
        close=lambda end: followed.finish(exit_code=int(end == "failed")),
    )


def _mlflow(run: RunFolder, config: Mapping[str, Any], known: str | None, step: int) -> Tracker:
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    client, experiment = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    if known is None:
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found is not None else client.create_experiment(experiment)
        run_id = client.create_run(number, run_name=run.path.name).info.run_id
        texts = {name: str(value)[:500] for name, value in _flat(config).items()}
        client.log_batch(run_id, params=[Param(name, value) for name, value in list(texts.items())[:100]])
    else:
        run_id = known
        client.update_run(run_id, status="RUNNING")

    def log(numbers: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)  # milliseconds
        client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    statuses = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
    return Tracker(
        name="mlflow", run_id=run_id, log=log, close=lambda end: client.set_terminated(run_id, statuses[end])
    )


def _trackio(run: RunFolder, config: Mapping[str, Any], known: str | None, step: int) -> Tracker:
    import trackio  # pyright: ignore[reportMissingImports]

    name = known or f"{run.path.name}-{uuid.uuid4().hex[:6]}"  # runs are distinguished by their name
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=name, config=dict(config), resume="allow"
    )
    return Tracker(
        name="trackio",
        run_id=name,
        log=lambda numbers, step: trackio.log(dict(numbers), step=step),
        close=lambda end: trackio.finish(),
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


Opener = Callable[[RunFolder, Mapping[str, Any], str | None, int], Tracker]
TRACKERS: dict[str, tuple[str, Opener]] = {
    "tensorboard": ("tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
    "trackio": ("trackio", _trackio),
}
"""Name -> (package, what opens it)."""
