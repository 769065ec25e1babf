"""What the advice costs: problems are drawn, everything that their users could run is raced, and the advised
choice is compared with the best one.

    python benchmarks/advice_regret.py --seed S --problems 40 [--workers 2] [--json]

docs/advice.md describes the measure, benchmarks/advice/problems.py the distribution. Rules and the habits
below were chosen on TUNED_ON alone: report other seeds.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of benchmarks/advice

from benchmarks.advice.contest import TUNING_SEEDS, Arm, Raced, race
from benchmarks.advice.problems import Draw, drawn
from benchmarks.advice.regret import Habit, habits, regret, regret_of_range, summary

from preftune.advice.advice import advise
from preftune.advice.evidence import Evidence, evidence_json
from preftune.lab.measured_evidence import measure_evidence

TUNED_ON = (0, 101, 202, 303, 404)
BEST_SINGLE = Habit(on_policy=None, offline="wpo")
BEST_PAIR = Habit(on_policy="rloo", offline="dpo")
SEEDS_OF_A_PROBLEM = 100  # apart, more than a race uses


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem after its race."""

    draw: Draw
    raced: Raced
    evidence: Evidence
    advised: Arm
    seconds: float


def first_seed(seed: int, index: int) -> int:
    return 100_000 * (seed + 1) + SEEDS_OF_A_PROBLEM * index


def user_sees(draw: Draw, seed: int) -> Evidence:
    """Evidence on the data of the first reported seed, with what the user can afford."""
    found = measure_evidence(
        draw.problem, groups=draw.groups, can_reward=draw.can_reward, seed=seed + TUNING_SEEDS
    )
    return found.with_answers(
        can_sample=draw.rounds > 0, samples=draw.samples, steps=draw.steps, can_hold_reference=True
    )


def advised(evidence: Evidence) -> Arm:
    """The first source and the first objective."""
    advice = advise(evidence)
    return Arm(source=advice.source[0].choice, objective=advice.objective[0].choice)  # type: ignore[arg-type]


def case(seed: int, index: int) -> Case:
    torch.set_num_threads(1)
    start = time.process_time()
    draw = drawn(seed, index)
    evidence = user_sees(draw, first_seed(seed, index))
    choice = advised(evidence)  # before the race
    raced = race(draw, first_seed(seed, index))
    return Case(
        draw=draw, raced=raced, evidence=evidence, advised=choice, seconds=time.process_time() - start
    )


def cases(seed: int, count: int, workers: int) -> list[Case]:
    """In the order of their numbers; the same for every number of workers."""
    found = {}
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(case, seed, index): index for index in range(count)}
        for future in as_completed(waiting):
            found[waiting[future]] = future.result()
            print(f"{len(found)} of {count} problems", file=sys.stderr, flush=True)
    return [found[index] for index in range(count)]


def report(seed: int, found: list[Case], wall: float) -> dict[str, Any]:
    races = [one.raced for one in found]

    def of(habit: Habit) -> dict[str, Any]:
        taken = [(raced, habit.choice(raced)) for raced in races]
        of_range = dict(summary([regret_of_range(*one) for one in taken]))
        return dict(summary([regret(*one) for one in taken])) | {"of_range": of_range}

    mine = [regret(one.raced, one.advised) for one in found]
    everywhere = habits(races)
    apart: dict[str, list[float]] = {}
    for one, cost in zip(found, mine, strict=True):
        rewards = "with" if one.draw.can_reward else "without"
        apart.setdefault(
            "on own samples" if one.draw.on_policy else f"offline, {rewards} rewards", []
        ).append(cost)
    return {
        "seed": seed,
        "problems": len(found),
        "tuned_on_seeds": list(TUNED_ON),
        "advice": dict(summary(mine))
        | {"of_range": dict(summary([regret_of_range(one.raced, one.advised) for one in found]))},
        "best_single_method_of_tuning": {"habit": str(BEST_SINGLE), **of(BEST_SINGLE)},
        "best_pair_of_methods_of_tuning": {"habit": str(BEST_PAIR), **of(BEST_PAIR)},
        "advice_where": {
            name: {"problems": len(part), **summary(part)} for name, part in sorted(apart.items())
        },
        "habits": {str(habit): of(habit) for habit in everywhere},
        "seconds": {"wall": round(wall, 1), "processor": round(sum(one.seconds for one in found), 1)},
        "cases": [_told(index, one, mine[index]) for index, one in enumerate(found)],
    }


def _told(index: int, one: Case, cost: float) -> dict[str, Any]:
    draw, raced = one.draw, one.raced
    best = max(raced.returns, key=lambda choice: raced.returns[choice])
    return {
        "problem": index,
        "policy": draw.problem.policy,
        "size": draw.problem.size,
        "groups": draw.groups,
        "completions": draw.problem.data.completions,
        "noise": draw.problem.data.noise,
        "steps": draw.steps,
        "rounds": draw.rounds,
        "can_reward": draw.can_reward,
        "reward": repr(draw.problem.reward),
        "reference": repr(draw.problem.reference),
        "law": repr(draw.problem.data.law),
        "advised": f"{one.advised.objective} {one.advised.source}",
        "best": f"{best.objective} {best.source}",
        "regret": round(cost, 4),
        "regret_of_range": round(regret_of_range(raced, one.advised), 4),
        "start": round(raced.start, 4),
        "returns": {
            f"{c.objective} {c.source}": [round(value, 4), raced.rates[c]]
            for c, value in raced.returns.items()
        },
        "evidence": evidence_json(one.evidence),
        "seconds": round(one.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The regret of the advice on problems of the laboratory.")
    parser.add_argument(
        "--seed", type=int, required=True, help=f"of the problems; rules were tuned on {TUNED_ON}"
    )
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="all of it; otherwise a summary")
    settings = parser.parse_args()
    start = time.perf_counter()
    raced = cases(settings.seed, settings.problems, settings.workers)
    found = report(settings.seed, raced, time.perf_counter() - start)
    if settings.json:
        print(json.dumps(found, indent=1))
        return
    for name in ("advice", "best_single_method_of_tuning", "best_pair_of_methods_of_tuning"):
        print(f"{name}: {found[name]}")
    for name, part in found["advice_where"].items():
        print(f"advice, {name}: {part}")
    print(f"seconds: {found['seconds']}")


if __name__ == "__main__":
    main()
