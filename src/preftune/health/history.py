"""What a run has logged up to a step, as numbers alone, and what is read off it again and again."""

import math
import statistics
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

WINDOW = 10
"""Training steps that make one number: a step of a few pairs alone is noise."""
MIN_STEPS = 10
"""Before so many steps a trend is not judged: a warm-up, or a try-out of a few steps, has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """One metric at ascending steps, finite values only, at least one."""

    steps: Sequence[int]
    values: Sequence[float]

    def head(self, num: int = WINDOW) -> float:
        """Mean of the first values: fewer than `num` where head and tail would meet."""
        return statistics.fmean(self.values[: self._size(num)])

    def tail(self, num: int = WINDOW) -> float:
        """Mean of the last values."""
        return statistics.fmean(self.values[-self._size(num) :])

    def _size(self, num: int) -> int:
        return max(1, min(num, len(self.values) // 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that a condition uses; None where a run does not record them.

    `chosen_fall` is a fact of the objective, `against_*` are settings to try: see
    `preftune.objectives.remedies`. A remedy is empty where none is known.
    """

    objective: str = ""
    chosen_fall: str = "prevented"
    against_fall: str = ""
    against_overlap: str = ""
    against_length: str = ""
    beta: float | None = None
    on_policy: bool = False
    learning_rate: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    num_completions: int | None = None
    temperature: float | None = None
    collect_epochs: int = 1
    lag: int = 0
    replay: int = 0
    reward: str | None = None
    reference_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Metrics of training and of evaluation, without the prefix `eval_`, and the settings."""

    train: Mapping[str, Points] = field(default_factory=dict)
    evaluation: Mapping[str, Points] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    @property
    def step(self) -> int:
        """Training steps done."""
        return max((one.steps[-1] for one in self.train.values()), default=0)

    @property
    def share_done(self) -> float | None:
        """Of the steps that the run is to do."""
        if self.settings.max_steps:
            return self.step / self.settings.max_steps
        if self.settings.epochs and "epoch" in self.train:
            return self.train["epoch"].values[-1] / self.settings.epochs
        return None

    @property
    def has_trend(self) -> bool:
        return self.step >= MIN_STEPS

    def start(self, name: str) -> float | None:
        """A metric before training: the evaluation at step 0, or the first training step, whose scores
        precede its update.
        """
        for series in (self.evaluation.get(name), self.train.get(name)):
            if series is not None and series.steps[0] <= 1:
                return series.values[0]
        return None

    def now(self, name: str) -> float | None:
        """A metric at the last evaluation after a step, or where there is none over the last training steps."""
        held, trained = self.evaluation.get(name), self.train.get(name)
        if held is not None and held.steps[-1] > 0:
            return held.values[-1]
        return trained.tail() if trained is not None else None

    def held_out(self, name: str) -> Points | None:
        """A metric's evaluations, where there are at least two."""
        series = self.evaluation.get(name)
        return series if series is not None and len(series.values) > 1 else None


def history_of(
    rows: Iterable[Mapping[str, object]], config: Mapping[str, object], facts: Mapping[str, str] | None = None
) -> History:
    """The lines of metrics.jsonl and the resolved configuration as a history."""
    history = GrowingHistory(config, facts)
    for row in rows:
        history.add(row)
    now = history.now()
    return replace(now, train=_frozen(now.train), evaluation=_frozen(now.evaluation))


def _frozen(metrics: Mapping[str, Points]) -> dict[str, Points]:
    return {
        name: Points(steps=tuple(points.steps), values=tuple(points.values))
        for name, points in metrics.items()
    }


def metric_values(row: Mapping[str, object]) -> tuple[int, str, dict[str, float]] | None:
    """(step, phase, value of each metric) of a line of metrics.jsonl, in the phase "eval" without the prefix
    `eval_`; None where the line has neither step nor phase.
    """
    step, phase = row.get("step"), row.get("phase")
    if not isinstance(step, int) or isinstance(step, bool) or phase not in ("train", "eval"):
        return None
    values = {name: value for name, entry in row.items() if (value := as_float(entry)) is not None}
    values.pop("step")
    if phase == "eval":
        values = {name.removeprefix("eval_"): value for name, value in values.items()}
    return step, str(phase), values


def as_float(value: object) -> float | None:
    """A JSON value as a float, None where it is no number (a boolean is none); too large for a float is
    infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class GrowingHistory:
    """A history to which rows are added one by one; the cost of a row does not depend on how many there are."""

    def __init__(self, config: Mapping[str, object], facts: Mapping[str, str] | None = None):
        self._settings = settings_of(config, facts)
        self._points: dict[str, dict[str, Points]] = {"train": {}, "eval": {}}
        self.last_evaluation: int | None = None  # its step

    def add(self, row: Mapping[str, object]) -> None:
        """One line of metrics.jsonl. Of a step that appears twice the last line counts."""
        if (found := metric_values(row)) is None:
            return
        step, phase, values = found
        if phase == "eval":
            self.last_evaluation = step
        series = self._points[phase]
        for name, value in values.items():
            if math.isfinite(value):
                points = series.setdefault(name, Points(steps=array("q"), values=array("d")))
                _put(points.steps, points.values, step, value)  # type: ignore[arg-type]

    def now(self) -> History:
        """As of the rows so far; its numbers are shared with this object, and no copy."""
        return History(train=self._points["train"], evaluation=self._points["eval"], settings=self._settings)


def _put(steps: array, values: array, step: int, value: float) -> None:
    place = len(steps) if not steps or steps[-1] < step else bisect_left(steps, step)
    if place < len(steps) and steps[place] == step:
        values[place] = value
    else:
        steps.insert(place, step)
        values.insert(place, value)


def settings_of(config: Mapping[str, object], facts: Mapping[str, str] | None = None) -> Settings:
    """From the mapping that config.yaml holds, and the facts of the objective; what is not there, or not of
    its type, is not known.
    """
    objective, optim, collect, sampling = (
        _mapping(config.get(name)) for name in ("objective", "optim", "collect", "sampling")
    )
    reward, model = config.get("reward"), _mapping(config.get("reference")).get("model")
    source = config.get("source")
    return Settings(
        objective=str(objective.get("name") or ""),
        **(facts or {}),
        beta=_number(objective.get("beta")),
        on_policy=source == "on-policy" or (source == "hybrid" and isinstance(reward, str)),
        learning_rate=_number(optim.get("learning_rate")),
        epochs=_number(config.get("epochs")),
        max_steps=_whole(config.get("max_steps")),
        batch_size=_whole(config.get("batch_size")),
        num_completions=_whole(sampling.get("num_completions")),
        temperature=_number(sampling.get("temperature")),
        collect_epochs=_whole(collect.get("epochs")) or 1,
        lag=_whole(collect.get("lag")) or 0,
        replay=_whole(collect.get("replay")) or 0,
        reward=reward if isinstance(reward, str) else None,
        reference_model=model if isinstance(model, str) else None,
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    return (
        float(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
