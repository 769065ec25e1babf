"""Tuning the learning rates of the laboratory's experiments."""

from collections.abc import Sequence
from typing import Any

from preftune.lab.criteria import Tier
from preftune.lab.experiments import PLANS, grid_of
from preftune.lab.findings import TUNING_SEEDS, Tell, all_done
from preftune.lab.jobs import Job
from preftune.race.halving import rank_rates


def tune_experiments(
    tier: Tier, workers: int, tell: Tell, seeds: Sequence[int] = TUNING_SEEDS
) -> dict[str, Any]:
    """For each plan of a tier the mean final return over tuning seeds of each rate of its grid: the content
    of its file.
    """
    plans = PLANS[tier]()
    jobs = {
        (name, rate): Job(plan=plan, learning_rate=rate, seeds=tuple(seeds))
        for name, plan in plans.items()
        for rate in grid_of(plan.problem)
    }
    done = all_done(list(jobs.values()), workers, tell)
    content: dict[str, Any] = {"seeds": list(seeds), "runs": {}}
    for name, plan in plans.items():
        tracks = {rate: done[jobs[name, rate]].track for rate in grid_of(plan.problem)}
        best = rank_rates({rate: track.final("return").tolist() for rate, track in tracks.items()})[0]
        returns = tracks[best].measures["return"].mean(1)
        content["runs"][name] = {
            "scores": {rate: round(float(track.final("return").mean()), 4) for rate, track in tracks.items()},
            "rate": best,
            "stop": tracks[best].steps[int(returns.argmax())],
        }
    return content
