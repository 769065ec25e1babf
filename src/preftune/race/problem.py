"""Runs of a race on a lab problem, all seeds of a setting at once; loads no model library."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from preftune.errors import ConfigError, TrainingError
from preftune.lab.jobs import Failed, Job, Plan, perform_all
from preftune.lab.loop import Loop, Track
from preftune.lab.methods import EXCLUDED, all_methods
from preftune.lab.problem import load_problem
from preftune.race.contenders import Contender, contenders
from preftune.race.halving import Race, Trial, mean_score, next_trials, standing
from preftune.stats import mean_interval

MOST_SEEDS, LAST_SEED = 1000, 10**9


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of a run; it is written to the run's folder once the run is over.

    `curve` has the measure where it was taken: step, samples drawn, value. `failed` states why there is no
    score.
    """

    score: float | None
    failed: str | None
    counters: Mapping[str, float]
    measures: Mapping[str, float]
    curve: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabRace:
    """Methods on a lab problem. `loop.steps` is the full budget."""

    problem: str
    contenders: tuple[Contender, ...]
    race: Race
    loop: Loop

    def __post_init__(self) -> None:
        check_seeds(seeds=len(self.race.seeds))
        for contender in self.contenders:
            contender.lab_method()

    def job(self, trials: Sequence[Trial]) -> Job:
        """All seeds of one setting: a method at a rate with a share of the budget."""
        method = next(one for one in self.contenders if one.label == trials[0].method).lab_method()
        loop = replace(self.loop, steps=int(self.loop.steps * trials[0].share))
        plan = Plan(problem=self.problem, method=method, loop=loop)
        return Job(plan=plan, learning_rate=trials[0].rate, seeds=tuple(trial.seed for trial in trials))


@dataclass(frozen=True, kw_only=True)
class LabRun:
    """One trial: its result, and its measures over the evaluations unless it failed; `seconds` of the
    processor.
    """

    result: Result
    track: Track | None
    seconds: float


def check_seeds(**numbers: int) -> None:
    """All seeds of a run are in memory at once."""
    for name, number in numbers.items():
        if not 2 <= number <= MOST_SEEDS:
            raise ConfigError(
                f"{name} is out of range", got=number, expected=f"2, for an interval, to {MOST_SEEDS}"
            )


def lab_contenders(text: str, fewest: int = 2) -> tuple[Contender, ...]:
    """Methods as they are written for a comparison; `all` are those that the laboratory runs."""
    return contenders(",".join(all_methods()) if text.strip() == "all" else text, fewest)


def same_setting(trials: Sequence[Trial]) -> dict[tuple[str, float, float], list[Trial]]:
    """Trials by method, rate and share: they differ by the seed alone, and run together."""
    groups: dict[tuple[str, float, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.method, trial.rate, trial.share), []).append(trial)
    return groups


def run_trials(
    lab: LabRace,
    trials: Sequence[Trial],
    workers: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Trial, LabRun]:
    """All seeds of a setting at once; if one of them diverges, each alone, so that it takes no other one with
    it.
    """
    groups = list(same_setting(trials).values())
    jobs = [lab.job(group) for group in groups]
    done = perform_all(jobs, workers, tell)
    runs: dict[Trial, LabRun] = {}
    for group, job in zip(groups, jobs, strict=True):
        outcome = done[job]
        if not isinstance(outcome, Failed):
            tracks = [_seed_track(outcome.track, index) for index in range(len(group))]
            seconds = outcome.seconds / len(group)
            runs |= {
                trial: LabRun(result=_result(track), track=track, seconds=seconds)
                for trial, track in zip(group, tracks, strict=True)
            }
        elif len(group) == 1:
            result = Result(score=None, failed=outcome.reason, counters={}, measures={})
            runs[group[0]] = LabRun(result=result, track=None, seconds=0.0)
        else:
            for trial in group:
                runs |= run_trials(lab, [trial])
    return runs


def _seed_track(track: Track, index: int) -> Track:
    measures = {name: values[:, index : index + 1] for name, values in track.measures.items()}
    return replace(track, measures=measures)


def _result(track: Track) -> Result:
    """Result of a track with one seed."""
    values = track.measures["return"][:, 0].tolist()
    drawn = track.counters["samples_drawn"]
    last = {name: float(track.final(name)[0]) for name in track.measures}
    points = [
        (float(step), float(count), value)
        for step, count, value in zip(track.steps, drawn, values, strict=True)
    ]
    finite = math.isfinite(values[-1])
    return Result(
        score=values[-1] if finite else None,
        failed=None if finite else "The expected reward is not finite",
        counters={"steps": float(track.steps[-1])}
        | {name: float(counts[-1]) for name, counts in track.counters.items()},
        measures={name: value for name, value in last.items() if math.isfinite(value)},
        curve=tuple(point for point in points if math.isfinite(point[2])),
    )


def run_lab_race(lab: LabRace, workers: int, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """The whole race, as JSON: for each method its tuning, and the measures of the confirming seeds with 95%
    intervals.
    """
    runs: dict[Trial, LabRun] = {}
    while waiting := next_trials(lab.race, _scores(runs)):
        runs |= run_trials(lab, waiting, workers, tell)
    if all(run.result.failed for run in runs.values()):
        raise TrainingError("Every run stopped", got=next(iter(runs.values())).result.failed)
    problem = load_problem(lab.problem)
    return {
        "problem": problem.name,
        "about": problem.about,
        "loop": asdict(lab.loop),
        "tuning_seeds": list(lab.race.tuning_seeds),
        "seeds": list(lab.race.seeds),
        "left_out": dict(EXCLUDED),
        "objectives": {method: _method_result(lab.race, method, runs) for method in lab.race.methods},
    }


def _scores(runs: Mapping[Trial, LabRun]) -> dict[Trial, float | None]:
    return {trial: run.result.score for trial, run in runs.items()}


def _method_result(race: Race, method: str, runs: Mapping[Trial, LabRun]) -> dict[str, Any]:
    """`tuning` has the score of each rate in the last round that it took part in."""
    mine = {trial: run for trial, run in runs.items() if trial.method == method}
    rounds: dict[tuple[float, float], list[float | None]] = {}
    for trial, run in mine.items():
        if trial.seed in race.tuning_seeds:
            rounds.setdefault((trial.share, trial.rate), []).append(run.result.score)
    tuning = {
        rate: mean_score(scores) for (_, rate), scores in sorted(rounds.items(), key=lambda one: one[0])
    }
    entry = {
        "learning_rate": standing(race, method, _scores(runs)).rate,
        "tuning": {f"{rate:g}": None if score is None else round(score, 6) for rate, score in tuning.items()},
    }
    confirmed = [run for trial, run in mine.items() if trial.seed in race.seeds]
    reasons = [run.result.failed for run in confirmed if run.result.failed]
    if reasons or not confirmed:
        return entry | {"failed": reasons[0] if reasons else "every learning rate failed in tuning"}
    tracks = [run.track for run in confirmed if run.track is not None]
    measures = {}
    for name in tracks[0].measures:
        values = np.concatenate([track.measures[name] for track in tracks], axis=1)
        intervals = [mean_interval(at_step) for at_step in values]
        measures[name] = {
            side: [_short(getattr(interval, side)) for interval in intervals]
            for side in ("mean", "low", "high")
        }
    seconds = round(sum(run.seconds for run in confirmed), 2)
    return entry | {"counters": tracks[0].counters, "measures": measures, "seconds": seconds}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
