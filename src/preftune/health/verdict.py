"""Parts of a health finding: a number, the thresholds that it crosses, and the text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from preftune.health.history import History

Level = Literal["ok", "watch", "act"]
LEVELS: tuple[Level, ...] = ("ok", "watch", "act")
"""A level's number in metrics.jsonl is its place here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The values from which a condition is at level watch and at level act; with `below` smaller values are
    worse.
    """

    measures: str
    watch: float
    act: float | None = None  # no value alone requires action
    below: bool = False
    reason: str

    def level(self, value: float) -> Level:
        if self.act is not None and self._crossed(value, self.act):
            return "act"
        return "watch" if self._crossed(value, self.watch) else "ok"

    def _crossed(self, value: float, line: float) -> bool:
        return value <= line if self.below else value >= line

    @property
    def text(self) -> str:
        side = "at or below" if self.below else "at or above"
        act = f", act {side} {self.act:g}" if self.act is not None else ", never act"
        return f"{self.measures}: watch {side} {self.watch:g}{act}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A condition's number in one run, before it is compared. `cap` is the highest level that the rest of the
    run allows.
    """

    value: float
    threshold: Threshold
    evidence: str  # the numbers, in a sentence without its full stop
    meaning: str
    option: (
        str  # one setting of `preftune train`, as typed on the command line, or text where no setting helps
    )
    cap: Level = "act"

    @property
    def level(self) -> Level:
        return LEVELS[min(LEVELS.index(self.threshold.level(self.value)), LEVELS.index(self.cap))]


def worst_measured(measured: Sequence[Measured | None]) -> Measured | None:
    """The one of the highest level, the first of several; None where nothing could be measured."""
    known = [one for one in measured if one is not None]
    return max(known, key=lambda one: LEVELS.index(one.level), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A named way in which a run can go wrong. `measure` gives None where the run lacks the metrics."""

    id: str
    title: str
    measure: Callable[[History], Measured | None]
    thresholds: tuple[Threshold, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one condition for a run at a step."""

    id: str
    title: str
    level: Level
    value: float
    evidence: str
    threshold: str
    reason: str
    meaning: str
    option: str

    @property
    def number(self) -> int:
        return LEVELS.index(self.level)

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"health: {self.level}: {self.title}: {self.evidence}. {self.meaning} Try: {self.option}"


def one_in(factor: float, rate: float | None) -> str:
    """The learning rate divided by the factor, as an option."""
    if rate:
        return f"--learning_rate {rate / factor:.2g}"
    return f"--learning_rate, {'smaller' if factor > 1 else 'larger'}"
