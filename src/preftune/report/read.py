"""A run folder as frozen data.

A run may still be going, or may have been cut between two writes: what is not there yet is empty, a broken
last line is left out, and everything else that could not be read is said in `notes`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from preftune.errors import ConfigError, StorageError, storage_error
from preftune.health.history import as_float, metric_values
from preftune.report.tokens import TokenRow, parse_token_row
from preftune.spec.schema import migrated
from preftune.spec.strict_yaml import parse_yaml
from preftune.text import plural

METRICS, TOKENS = "metrics.jsonl", "tokens.jsonl"
STATES = ("finished", "interrupted", "failed", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric over the steps, which ascend. A logged value that is not finite stays: it shows a run
    blown up.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        return self.values[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion of the policy before or after training."""

    stage: Literal["before", "after"]
    step: int
    prompt_index: int
    sample_index: int
    prompt: str
    completion: str
    reward: float | None
    ended: bool  # with the end-of-turn token, not cut at the token limit
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What a run folder holds. `train` and `evaluation` map a metric to its series, without the prefix
    `eval_`.
    """

    folder: Path
    config: Mapping[str, object]  # without the environment
    environment: Mapping[str, object]
    rows: tuple[Mapping[str, object], ...]  # lines of metrics.jsonl
    train: Mapping[str, Series]
    evaluation: Mapping[str, Series]
    tokens: tuple[TokenRow, ...]
    samples: tuple[Sample, ...]  # sorted by prompt, sample and stage (before first)
    data_lines: tuple[str, ...]
    state: str  # one of STATES
    message: str
    has_final: bool
    notes: tuple[str, ...]
    best: Mapping[str, object] = field(
        default_factory=dict
    )  # metric, value and step, where a run keeps the best

    @property
    def name(self) -> str:
        return self.folder.name or self.folder.resolve().name

    @property
    def last_step(self) -> int:
        return max((s.steps[-1] for s in (*self.train.values(), *self.evaluation.values())), default=0)


def read_run(folder: Path) -> RunFiles:
    """The run in `folder`; a ConfigError where there is no run, a StorageError where a file cannot be read."""
    if not folder.is_dir():
        raise ConfigError(
            "There is no such run folder", got=str(folder), do="Give the output folder of a training run"
        )
    if not any((folder / name).is_file() for name in ("config.yaml", METRICS)):
        raise ConfigError(
            "This is not a run folder",
            got=str(folder),
            expected="a folder with config.yaml and metrics.jsonl",
            do="Give the output folder of a training run",
        )
    config = _config(folder / "config.yaml")
    environment = config.pop("environment", None)
    rows, metric_notes = _json_lines(folder / METRICS)
    train, evaluation, step_notes = _series(rows)
    sample_rows, sample_notes = _json_lines(folder / "samples.jsonl")
    samples, field_notes = _samples(sample_rows)
    tokens, token_notes = read_token_table(folder / TOKENS)
    data_report, data_notes = _json_object(folder / "data_report.json")
    status, status_notes = _json_object(folder / "status.json")
    best = _json_object(folder / "best.json")[0] if (folder / "best.json").is_file() else {}
    lines = data_report.get("lines")
    state = status.get("state")
    return RunFiles(
        folder=folder,
        config=config,
        environment=environment if isinstance(environment, dict) else {},
        best=best,
        rows=tuple(rows),
        train=train,
        evaluation=evaluation,
        samples=samples,
        tokens=tokens,
        data_lines=tuple(str(line) for line in lines) if isinstance(lines, list) else (),
        # Without a status the run was started and never wrote its end: according to its files, it is
        # running.
        state=state if isinstance(state, str) and state in STATES else "running",
        message=str(status.get("message") or ""),
        has_final=(folder / "final").is_dir(),
        notes=(
            *metric_notes,
            *step_notes,
            *sample_notes,
            *field_notes,
            *token_notes,
            *data_notes,
            *status_notes,
        ),
    )


def read_token_table(path: Path) -> tuple[tuple[TokenRow, ...], tuple[str, ...]]:
    """The rows of a tokens.jsonl, and notes of what could not be read; nothing where there is no such file."""
    rows, notes = _json_lines(path)
    found = [parse_token_row(row) for row in rows]
    known = tuple(row for row in found if row is not None)
    skipped = len(found) - len(known)
    lacking = (
        (f"{path.name}: {plural(skipped, 'line')} without the fields of a completion skipped.",)
        if skipped
        else ()
    )
    return known, (*notes, *lacking)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error("read the run", path, error) from error


def _config(path: Path) -> dict[str, object]:
    text = _read(path)
    if text is None:
        return {}
    try:
        config = parse_yaml(text, str(path))
    except ConfigError as error:
        raise StorageError("The configuration is damaged", got=str(error), do="Restore the file") from error
    if not isinstance(config, dict):
        raise StorageError(
            "The configuration is damaged", got=f"{path}", expected="a mapping", do="Restore the file"
        )
    return {str(key): value for key, value in migrated(config, str(path))[0].items()}


def _json_object(path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    text = _read(path)
    if text is None:
        return {}, ()
    value = _parse(text)
    return ({}, (f"{path.name} is not a JSON object and was skipped.",)) if value is None else (value, ())


def _json_lines(path: Path) -> tuple[list[dict[str, object]], tuple[str, ...]]:
    """The objects of a JSON-lines file. A broken last line is a write that was cut, so it goes without a
    note.
    """
    # Split at line feeds only: splitlines() would also break at separators that JSON strings may hold as they
    # are.
    lines = (_read(path) or "").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [(index, _parse(line)) for index, line in enumerate(lines) if line.strip()]
    broken = [index + 1 for index, row in rows if row is None and index + 1 < len(lines)]
    return [row for _, row in rows if row is not None], _note(path.name, broken, "is not a JSON object")


def _parse(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _note(file: str, lines: list[int], fault: str) -> tuple[str, ...]:
    if not lines:
        return ()
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return (f"{file}: line {lines[0]}{more} {fault} and was skipped.",)


def _series(rows: list[dict[str, object]]) -> tuple[dict[str, Series], dict[str, Series], tuple[str, ...]]:
    """Series by phase. A resumed run logs steps again: the later line counts."""
    metrics: dict[str, dict[str, dict[int, float]]] = {"train": {}, "eval": {}}
    known = [found for row in rows if (found := metric_values(row)) is not None]
    for step, phase, values in known:
        for name, value in values.items():
            metrics[phase].setdefault(name, {})[step] = value
    train, evaluation = (
        {
            name: Series(steps=tuple(sorted(points)), values=tuple(points[step] for step in sorted(points)))
            for name, points in metrics[phase].items()
        }
        for phase in ("train", "eval")
    )
    skipped = len(rows) - len(known)
    notes = (f"{METRICS}: {skipped} lines without step or phase were skipped.",) if skipped else ()
    return train, evaluation, notes


def _samples(rows: list[dict[str, object]]) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    found: dict[tuple[int, int, bool], Sample] = {}
    skipped = 0
    for row in rows:
        sample = _sample(row)
        if sample is None:
            skipped += 1
        else:  # sampled again after a resume: the later line counts
            found[sample.prompt_index, sample.sample_index, sample.stage == "after"] = sample
    notes = (f"samples.jsonl: {skipped} lines lack a field and were skipped.",) if skipped else ()
    return tuple(found[key] for key in sorted(found)), notes


def _sample(row: dict[str, object]) -> Sample | None:
    stage, prompt, completion, ended = (row.get(key) for key in ("stage", "prompt", "completion", "ended"))
    counts = [row.get(key) for key in ("step", "prompt_index", "sample_index", "num_tokens")]
    step, prompt_index, sample_index, num_tokens = (
        c if isinstance(c, int) and not isinstance(c, bool) else None for c in counts
    )
    if step is None or prompt_index is None or sample_index is None or num_tokens is None:
        return None
    if stage not in ("before", "after") or not (isinstance(prompt, str) and isinstance(completion, str)):
        return None
    reward = as_float(row.get("reward"))
    return Sample(
        stage="before" if stage == "before" else "after",
        step=step,
        prompt_index=prompt_index,
        sample_index=sample_index,
        prompt=prompt,
        completion=completion,
        reward=reward if reward is not None and math.isfinite(reward) else None,
        ended=ended is True,
        num_tokens=num_tokens,
    )
