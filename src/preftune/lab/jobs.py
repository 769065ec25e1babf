"""Runs as data: what is trained on what; and many of them, on several processes, each with one thread."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from preftune.errors import TrainingError
from preftune.lab.environment import World
from preftune.lab.loop import Loop, Track, run
from preftune.lab.methods import Method
from preftune.lab.paper_methods import CAST
from preftune.lab.problem import load_problem


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A method on a problem (shipped, or in a file), without its learning rate. The name of a method is one
    of the papers' (CAST).
    """

    problem: str
    method: str | Method
    loop: Loop
    train: int | None = None

    def reading(self) -> Method:
        return CAST[self.method] if isinstance(self.method, str) else self.method

    def cost(self) -> float:
        """Roughly, in seconds of one core for 20 seeds: for the order of work only."""
        if self.problem.startswith("length") or self.problem in ("tokens", "overlap"):
            return self.loop.steps * 0.005
        if self.problem.startswith("gpt"):
            return self.loop.steps * 0.03 + (self.loop.collection or 0) * 1e-3
        rows = (self.loop.minibatch or 10 * (self.train or 10)) / 10
        return self.loop.steps * (0.006 + 0.0002 * rows) + (self.loop.collection or 0) * 1e-4


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan with its learning rate and its seeds."""

    plan: Plan
    learning_rate: float
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Done:
    track: Track
    seconds: float  # of the processor


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A job that stopped, as with a learning rate at which the loss is not finite."""

    reason: str


def perform(job: Job) -> Done | Failed:
    """Trains and measures one job, on one thread."""
    try:
        return _performed(job)
    except TrainingError as error:
        return Failed(reason=str(error))


def _performed(job: Job) -> Done:
    torch.set_num_threads(1)
    start = time.process_time()
    problem = load_problem(job.plan.problem)
    if job.plan.train is not None:
        problem = problem.with_train(job.plan.train)
    track = run(World(problem, job.seeds), job.plan.reading(), job.plan.loop, job.learning_rate)
    return Done(track=track, seconds=time.process_time() - start)


def perform_all(
    jobs: Sequence[Job], workers: int, tell: Callable[[int, int], None] = lambda done, total: None
) -> Mapping[Job, Done | Failed]:
    """Every job once, the longest first. The results do not depend on the number of workers: each job has one
    thread.
    """
    wanted = sorted(dict.fromkeys(jobs), key=lambda job: -job.plan.cost())
    found: dict[Job, Done | Failed] = {}
    if workers <= 1:
        for job in wanted:
            found[job] = perform(job)
            tell(len(found), len(wanted))
        return found
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(perform, job): job for job in wanted}
        for future in as_completed(waiting):
            found[waiting[future]] = future.result()
            tell(len(found), len(wanted))
    return found
