"""From tracks to verdicts: clauses with thresholds that were written down before, and intervals over seeds.

A clause compares numbers of the same seeds, so its interval is that of paired differences (Student's t,
two-sided). It holds where the whole interval lies on the right side of the threshold, and fails where it lies
on the wrong one.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import yaml

from preftune.errors import ConfigError
from preftune.lab.loop import Track
from preftune.spec import build
from preftune.stats import Interval, mean_interval

CRITERIA = resources.files("preftune") / "lab" / "criteria.yaml"

Verdict = Literal["reproduced", "not reproduced", "fragile"]
Tier = Literal["small", "gpt"]
"""Small: bandits and lengths, in minutes. gpt: the small transformer."""


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One number and where it must lie.

    Args:
        text: the clause in words.
        kind: "value" of a run; "difference" of the first run less the second; "ratio" of the first to the
            second; "spread" between the largest and the smallest of several; "falls": the smallest step down
            along a list of runs, which must not be a rise.
        of: names of runs.
        measure: what is measured; "margin" is the log-ratio of the best completions less that of the others.
        at: "final", "stopped" (the step at which tuning seeds were best), or a step.
        reaches: take the `count` at which the measure first reaches this, or the last count where it never
            does.
        count: grad_steps, samples_drawn, reward_queries or prompts_seen.
        above: the number must be above this.
        below: the number must be below this.
    """

    text: str
    kind: Literal["value", "difference", "ratio", "spread", "falls"]
    of: tuple[str, ...]
    measure: str = "return"
    at: str = "final"
    reaches: float | None = None
    count: Literal["grad_steps", "samples_drawn", "reward_queries", "prompts_seen"] = "grad_steps"
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ConfigError(f"The clause {self.text!r} needs one of above and below")
        wanted = {"value": 1, "difference": 2, "ratio": 2}.get(self.kind)
        if (wanted is not None and len(self.of) != wanted) or (wanted is None and len(self.of) < 2):
            raise ConfigError(f"The clause {self.text!r} has the wrong number of runs", got=len(self.of))

    @property
    def criterion(self) -> str:
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """An experiment's claim and what would show it. `finding`: the paper's, with a word if it is doubted.
    `tier`: what it costs.
    """

    finding: str
    title: str
    claim: str
    clauses: tuple[Clause, ...]
    note: str = ""
    tier: Tier = "small"


@dataclass(frozen=True, kw_only=True)
class JudgedClause:
    """A clause with its number."""

    text: str
    criterion: str
    estimate: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An experiment with its verdict: reproduced if every clause holds, not reproduced if one fails, else
    fragile.
    """

    id: str
    criteria: Criteria
    clauses: tuple[JudgedClause, ...]

    @property
    def verdict(self) -> Verdict:
        found = {clause.verdict for clause in self.clauses}
        return (
            "not reproduced"
            if "not reproduced" in found
            else "fragile"
            if "fragile" in found
            else "reproduced"
        )

    def as_dict(self) -> dict[str, Any]:
        """As in verdicts.json: nothing that differs between two runs of the same seeds."""
        return {
            "id": self.id,
            "finding": self.criteria.finding,
            "claim": self.criteria.claim,
            "verdict": self.verdict,
            "clauses": [
                {
                    "text": c.text,
                    "criterion": c.criterion,
                    "estimate": _rounded(c.estimate),
                    "interval": [_rounded(c.low), _rounded(c.high)],
                    "verdict": c.verdict,
                }
                for c in self.clauses
            ],
        }


def load_criteria() -> dict[str, Criteria]:
    """Every experiment of the file, by its id."""
    content = yaml.safe_load(CRITERIA.read_text(encoding="utf-8"))
    return {name: build(Criteria, entry, f"criteria.yaml, {name}") for name, entry in content.items()}


def judge_experiment(
    name: str, criteria: Criteria, tracks: Mapping[str, Track], stops: Mapping[str, int], level: float = 0.95
) -> Outcome:
    """The verdict on one experiment from the tracks of its runs."""
    values = [
        [clause_values(clause, tracks[run], stops.get(run)) for run in clause.of]
        for clause in criteria.clauses
    ]
    clauses = tuple(_judged(clause, of, level) for clause, of in zip(criteria.clauses, values, strict=True))
    return Outcome(id=name, criteria=criteria, clauses=clauses)


def judge_values(
    name: str, criteria: Criteria, values: Mapping[str, np.ndarray], level: float = 0.95
) -> Outcome:
    """The verdict where each run is a number of each seed already."""
    clauses = tuple(_judged(clause, [values[run] for run in clause.of], level) for clause in criteria.clauses)
    return Outcome(id=name, criteria=criteria, clauses=clauses)


def _judged(clause: Clause, values: Sequence[np.ndarray], level: float) -> JudgedClause:
    interval = _interval(clause, values, level)
    right, wrong = (
        (interval.low > clause.above, interval.high <= clause.above)
        if clause.above is not None
        else (interval.high < clause.below, interval.low >= clause.below)  # type: ignore[operator]
    )
    return JudgedClause(
        text=clause.text,
        criterion=clause.criterion,
        estimate=interval.mean,
        low=interval.low,
        high=interval.high,
        verdict="reproduced" if right else "not reproduced" if wrong else "fragile",
    )


def _interval(clause: Clause, values: Sequence[np.ndarray], level: float) -> Interval:
    if clause.kind == "value":
        return mean_interval(values[0], level)
    if clause.kind == "difference":
        return mean_interval(values[0] - values[1], level)
    if clause.kind == "ratio":
        logs = mean_interval(np.log(values[0]) - np.log(values[1]), level)
        return Interval(
            mean=math.exp(logs.mean), low=math.exp(logs.low), high=math.exp(logs.high), num=logs.num
        )
    if clause.kind == "spread":
        return mean_interval(np.max(values, axis=0) - np.min(values, axis=0), level)
    steps = [mean_interval(before - after, level) for before, after in itertools.pairwise(values)]
    return min(steps, key=lambda step: step.mean)


def clause_values(clause: Clause, track: Track, stop: int | None) -> np.ndarray:
    """The number of each seed, [S]."""
    series = series_of(track, clause.measure)
    if clause.reaches is not None:
        counts = np.asarray(track.counters[clause.count])
        there = series >= clause.reaches
        first = np.where(there.any(0), there.argmax(0), len(counts) - 1)
        return counts[first].astype(float)
    if clause.at == "final":
        return series[-1]
    step = stop if clause.at == "stopped" else int(clause.at)
    if step not in track.steps:
        raise ConfigError(f"Nothing was measured at step {step}", got=clause.text)
    return series[track.steps.index(step)]


def series_of(track: Track, measure: str) -> np.ndarray:
    """A measure over the evaluations, [evaluations, S]."""
    if measure == "margin":
        return track.measures["log_ratio/best"] - track.measures["log_ratio/others"]
    return track.measures[measure]


def _rounded(value: float) -> float:
    """Six significant digits: below them rounding may differ between processors."""
    return float(f"{value:.6g}")
