"""Tuning on some seeds, and the confirming run on others: from plans to verdicts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import yaml

from preftune.errors import ConfigError, TrainingError
from preftune.lab.criteria import (
    Criteria,
    JudgedClause,
    Outcome,
    judge_experiment,
    judge_values,
    load_criteria,
)
from preftune.lab.experiments import SWEEP_RATES, SWEPT, plans, sweep_plan
from preftune.lab.jobs import Done, Failed, Job, Plan, perform_all
from preftune.lab.loop import Track
from preftune.lab.theory import PAGE_TOY, checks, descended, forward_direction, reverse_direction

RATES = {
    tier: resources.files("preftune") / "lab" / name
    for tier, name in (("small", "rates.yaml"), ("gpt", "rates_gpt.yaml"))
}
TUNING_SEEDS = tuple(range(5))
FIRST_SEED = 1000  # of confirming runs; tuning and what went before the criteria used seeds below 100
TOY = "Xh"
THEORY = ("E9", TOY)

Tell = Callable[[int, int], None]
SweepJobs = Mapping[tuple[str, str, float], Job]
"""By experiment, method and learning rate."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning found for a plan: the score of each rate, the best rate, and the step at which it was best."""

    scores: Mapping[float, float]
    rate: float
    stop: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A confirming run. `sweeps` are final values [rates, S] by method; `seconds` of one core by experiment,
    `wall` in all.
    """

    outcomes: tuple[Outcome, ...]
    tracks: Mapping[str, Track]
    sweeps: Mapping[str, Mapping[str, np.ndarray]]
    seconds: Mapping[str, float]
    wall: float
    seeds: tuple[int, ...]


def load_rates() -> dict[str, Tuned]:
    """What tuning found, by the name of the run."""
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RATES.values()]
    return {name: Tuned(**entry) for content in contents for name, entry in content["runs"].items()}


def needed(
    criteria: Mapping[str, Criteria], extra: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The runs of each experiment: those of its clauses, and those that only its figures show."""
    return {
        name: tuple(
            dict.fromkeys([*(run for clause in entry.clauses for run in clause.of), *extra.get(name, ())])
        )
        for name, entry in criteria.items()
    }


def confirm(
    seeds: Sequence[int],
    workers: int,
    tell: Tell,
    extra: Mapping[str, Sequence[str]],
    only: Sequence[str] = (),
) -> Findings:
    """Every experiment (or those named) on these seeds, with the learning rates on file, evaluated by the
    criteria on file.
    """
    start = time.perf_counter()
    criteria = {name: entry for name, entry in load_criteria().items() if not only or name in only}
    runs = {name: entry for name, entry in needed(criteria, extra).items() if name not in (*THEORY, *SWEPT)}
    rates, all_plans = load_rates(), plans()
    jobs = {run: _job(run, all_plans, rates, seeds) for names in runs.values() for run in names}
    swept = [name for name in SWEPT if name in criteria]
    sweep_jobs = _sweep_jobs(swept, seeds)
    done = all_done([*jobs.values(), *sweep_jobs.values()], workers, tell)
    tracks = {run: done[job].track for run, job in jobs.items()}
    sweeps = _final_values(swept, sweep_jobs, done)
    seconds = {
        name: sum(_share(jobs[run], done, runs, jobs) for run in names) for name, names in runs.items()
    }
    seconds |= {
        name: sum(done[job].seconds for key, job in sweep_jobs.items() if key[0] == name) for name in swept
    }
    stops = {run: rates[run].stop for run in tracks}
    outcomes = []
    for name, entry in criteria.items():
        began = time.process_time()
        outcomes.append(_outcome(name, entry, tracks, stops, sweeps))
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
    return Findings(
        outcomes=tuple(outcomes),
        tracks=tracks,
        sweeps=sweeps,
        seconds=seconds,
        wall=time.perf_counter() - start,
        seeds=tuple(seeds),
    )


def _sweep_jobs(experiments: Sequence[str], seeds: Sequence[int]) -> SweepJobs:
    """A run for each method and learning rate of the experiments that sweep rates."""
    return {
        (name, method, rate): Job(plan=sweep_plan(name, method), learning_rate=rate, seeds=tuple(seeds))
        for name in experiments
        for method in SWEPT[name][2]
        for rate in SWEEP_RATES
    }


def _final_values(
    experiments: Sequence[str], jobs: SweepJobs, done: Mapping[Job, Done]
) -> dict[str, dict[str, np.ndarray]]:
    """The final values [rates, S] of each experiment's methods."""
    return {
        name: {
            method: np.stack(
                [done[jobs[name, method, rate]].track.final(SWEPT[name][1]) for rate in SWEEP_RATES]
            )
            for method in SWEPT[name][2]
        }
        for name in experiments
    }


def _outcome(
    name: str,
    criteria: Criteria,
    tracks: Mapping[str, Track],
    stops: Mapping[str, int],
    sweeps: Mapping[str, Mapping[str, np.ndarray]],
) -> Outcome:
    """The verdict on one experiment."""
    if name in THEORY:
        return _theory(name, criteria)
    if name in SWEPT:
        areas = {method: area(values) for method, values in sweeps[name].items()}
        return judge_values(name, criteria, areas)
    return judge_experiment(name, criteria, tracks, stops)


def all_done(jobs: Sequence[Job], workers: int, tell: Tell) -> dict[Job, Done]:
    """Every job; a run of the findings that stops is an error."""
    found = {}
    for job, done in perform_all(jobs, workers, tell).items():
        if isinstance(done, Failed):
            raise TrainingError(
                f"{job.plan.method} on {job.plan.problem} stopped at learning rate {job.learning_rate:g}",
                got=done.reason,
            )
        found[job] = done
    return found


def area(finals: np.ndarray) -> np.ndarray:
    """Mean final return over the grid of rates (equally spaced in the logarithm), [rates, S] -> [S]:
    trapezoids.
    """
    return ((finals[1:] + finals[:-1]) / 2).mean(0)


def _theory(name: str, entry: Criteria) -> Outcome:
    """The largest departure from the numbers on record, for each closed form; nothing is random there."""
    if name == TOY:
        forward, reverse = (
            descended(*PAGE_TOY, direction, 0.3, 10) for direction in (forward_direction, reverse_direction)
        )
        rise = np.full(2, reverse[2] - forward[2])  # a number without a spread
        return judge_values(name, entry, {"toy": rise})
    departures: dict[str, tuple[float, float]] = {}
    for check in checks():
        worst, _ = departures.get(check.text, (0.0, 0.0))
        departures[check.text] = (max(worst, abs(check.found - check.expected)), check.tolerance)
    departures = {
        text: (round(worst, 9), tolerance) for text, (worst, tolerance) in departures.items()
    }  # below is rounding
    judged = [
        JudgedClause(
            text=text,
            criterion=f"within {tolerance:g}",
            estimate=worst,
            low=worst,
            high=worst,
            verdict="reproduced" if worst <= tolerance else "not reproduced",
        )
        for text, (worst, tolerance) in departures.items()
    ]
    return Outcome(id=name, criteria=entry, clauses=tuple(judged))


def _job(run: str, all_plans: Mapping[str, Plan], rates: Mapping[str, Tuned], seeds: Sequence[int]) -> Job:
    if run not in all_plans or run not in rates:
        raise ConfigError(
            "There is no such run", got=run, do="`preftune lab tune` writes the rates of all runs"
        )
    return Job(plan=all_plans[run], learning_rate=rates[run].rate, seeds=tuple(seeds))


def _share(
    job: Job, done: Mapping[Job, Done], runs: Mapping[str, Sequence[str]], jobs: Mapping[str, Job]
) -> float:
    """A run's time, divided among the experiments that look at it."""
    users = sum(any(jobs[run] == job for run in names) for names in runs.values())
    return done[job].seconds / users
