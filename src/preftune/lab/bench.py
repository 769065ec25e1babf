"""A user's own problem: every objective asked for, its learning rate tuned on seeds of their own, measured on
others.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from preftune.errors import ConfigError, TrainingError, check_range
from preftune.lab.criteria import series_of
from preftune.lab.experiments import grid_of
from preftune.lab.figures import LOOK, UNITS
from preftune.lab.findings import Tell
from preftune.lab.jobs import Done, Failed, Job, Plan, perform_all
from preftune.lab.loop import Loop
from preftune.lab.methods import EXCLUDED, all_methods
from preftune.lab.problem import load_problem
from preftune.report.figures import INK, MUTED, PALETTE, short_paths
from preftune.stats import mean_interval
from preftune.storage import whole_file

MOST_SEEDS, LAST_SEED = 1000, 10**9


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is compared on a problem. Tuning seeds are those right below `first_seed`, so that they are never
    the same.
    """

    problem: str
    objectives: tuple[str, ...]
    loop: Loop
    seeds: int = 20
    first_seed: int = 1000
    tuning_seeds: int = 5
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_seeds(seeds=self.seeds, tuning_seeds=self.tuning_seeds)
        check_range(
            self,
            f"[{self.tuning_seeds}, {LAST_SEED}]",
            "first_seed",
            expected=f"{self.tuning_seeds} to {LAST_SEED}",
        )
        if any(rate <= 0 for rate in self.rates):
            raise ConfigError(
                "A learning rate is out of range", got=min(self.rates), expected="a number above 0"
            )


def check_seeds(**numbers: int) -> None:
    """All seeds of a run are in memory at once."""
    for name, number in numbers.items():
        if not 2 <= number <= MOST_SEEDS:
            raise ConfigError(
                f"{name} is out of range", got=number, expected=f"2, for an interval, to {MOST_SEEDS}"
            )


def objectives_wanted(text: str) -> tuple[str, ...]:
    """`all`, or names with commas between them."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    runnable = all_methods()
    if names == ["all"]:
        return tuple(runnable)
    for name in names:
        if name not in runnable:
            raise ConfigError(
                f"The laboratory does not run {name}",
                got=EXCLUDED.get(name, "no objective of the table"),
                do="`preftune objectives` lists the table",
            )
    if not names:
        raise ConfigError("No objective is named", expected="all, or names with commas between them")
    return tuple(dict.fromkeys(names))


def compare(bench: Bench, workers: int, tell: Tell) -> dict[str, Any]:
    """The result as JSON: for each objective its tuning, and the measures of the confirming seeds with 95%
    intervals.
    """
    problem = load_problem(bench.problem)
    grid = bench.rates or grid_of(bench.problem)
    plans = {
        name: Plan(problem=bench.problem, method=name, defaults=True, loop=bench.loop)
        for name in bench.objectives
    }
    tuning = tuple(range(bench.first_seed - bench.tuning_seeds, bench.first_seed))
    seeds = tuple(range(bench.first_seed, bench.first_seed + bench.seeds))
    trials = {
        (name, rate): Job(plan=plan, learning_rate=rate, seeds=tuning)
        for name, plan in plans.items()
        for rate in grid
    }
    tried = perform_all(list(trials.values()), workers, tell)
    failed = [trial.reason for trial in tried.values() if isinstance(trial, Failed)]
    if len(failed) == len(tried):
        raise TrainingError("Every run stopped", got=failed[0])
    scores = {name: {rate: _score(tried[trials[name, rate]]) for rate in grid} for name in plans}
    best = {
        name: max(of, key=lambda rate: -np.inf if (s := of[rate]) is None else s)
        for name, of in scores.items()
    }
    jobs = {name: Job(plan=plan, learning_rate=best[name], seeds=seeds) for name, plan in plans.items()}
    done = perform_all(list(jobs.values()), workers, tell)
    return {
        "problem": problem.name,
        "about": problem.about,
        "loop": asdict(bench.loop),
        "tuning_seeds": list(tuning),
        "seeds": list(seeds),
        "left_out": {name: reason for name, reason in EXCLUDED.items()},
        "objectives": {
            name: {
                "learning_rate": best[name],
                "tuning": {f"{rate:g}": score for rate, score in scores[name].items()},
                **_measures(done[jobs[name]]),
            }
            for name in bench.objectives
        },
    }


def _score(done: Done | Failed) -> float | None:
    return None if isinstance(done, Failed) else round(float(done.track.final("return").mean()), 6)


def _measures(done: Done | Failed) -> dict[str, Any]:
    if isinstance(done, Failed):
        return {"failed": done.reason}
    track = done.track
    found = {}
    for name in track.measures:
        intervals = [mean_interval(values) for values in series_of(track, name)]
        found[name] = {
            "mean": [_short(i.mean) for i in intervals],
            "low": [_short(i.low) for i in intervals],
            "high": [_short(i.high) for i in intervals],
        }
    return {"counters": track.counters, "measures": found, "seconds": round(done.seconds, 2)}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def write_comparison(result: dict[str, Any], path: Path) -> Path:
    """The objectives by their final expected reward, as SVG, PNG or PDF: a line is a 95% interval over seeds."""
    ended = {
        name: entry["measures"]["return"]
        for name, entry in result["objectives"].items()
        if "measures" in entry
    }
    names = sorted(ended, key=lambda name: ended[name]["mean"][-1])
    start = next(iter(ended.values()))["mean"][0] if ended else 0.0
    with whole_file(path, "write the figure") as file, mpl.rc_context({**LOOK, "svg.hashsalt": "bench"}):
        figure = Figure(figsize=(6.4, 1.2 + 0.2 * len(names)), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for place, name in enumerate(names):
            measure = ended[name]
            axes.plot(
                [measure["low"][-1], measure["high"][-1]],
                [place, place],
                color=PALETTE[0],
                linewidth=2,
                solid_capstyle="butt",
            )
            axes.plot([measure["mean"][-1]], [place], marker="o", markersize=4.5, color=PALETTE[0])
        axes.axvline(start, color=MUTED, linestyle=(0, (2, 2)), linewidth=1)
        axes.annotate(
            "reference",
            (start, len(names) - 0.4),
            color=INK,
            fontsize=8,
            ha="center",
            va="bottom",
            annotation_clip=False,
        )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(
            xlabel=f"{UNITS['return']} after {result['loop']['steps']} steps", ylim=(-0.7, len(names) - 0.4)
        )
        axes.grid(True, axis="x")
        undated: dict[str, Any] = {
            ".svg": {"Date": None},
            ".pdf": {"CreationDate": None},
            ".png": {"Software": None},
        }
        figure.savefig(file, dpi=150, metadata=undated[path.suffix])
        if path.suffix == ".svg":
            file.write_text(short_paths(file.read_text(encoding="utf-8")), encoding="utf-8")
    return path
