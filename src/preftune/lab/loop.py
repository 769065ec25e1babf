"""The unified loop of Tajwar et al. (ICML 2024, algorithm 1) for all seeds at once, with exact measures.

repeat: draw B / C prompts, C completions of each (from the policy, or from the data); reward them;
        T times: split the B completions into B / M minibatches of M, one gradient step each
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from preftune.errors import ConfigError, DivergenceError, check_range, refuse_idle
from preftune.lab.environment import World
from preftune.lab.methods import Method, pairs_wanted
from preftune.lab.steps import make_step, pair_places, seed_losses, token_scores
from preftune.objectives import Coupled

MEASURED_GROUPS = 500  # of a collection, for its log-ratios


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How data are gathered and used.

    Args:
        source: who writes completions: the law of the data, once, or the policy, at each collection.
        steps: gradient steps in all.
        collection: B, completions of a collection; none: C for each training prompt, or ten times C where
            there are no prompts.
        minibatch: M, completions of a step; none: the whole collection.
        epochs: T, how often each collection is gone through; with source data there is only one collection,
            used till the end.
        completions: C, of each prompt; none: as the problem's data have.
        prompts: the same training prompts again, or new prompts for each collection.
        eval_every: steps between two exact measurements.
    """

    source: Literal["data", "policy"] = "data"
    steps: int = 200
    collection: int | None = None
    minibatch: int | None = None
    epochs: int | None = None
    completions: int | None = None
    prompts: Literal["train", "fresh"] = "train"
    eval_every: int = 20

    def __post_init__(self) -> None:
        names = ("steps", "collection", "minibatch", "epochs", "completions", "eval_every")
        check_range(self, "[1, inf)", *names, expected="1 or more")
        if self.source == "data":
            refuse_idle(self, "on a single collection", "epochs", do="Leave it out, or set source to policy")

    def sizes(self, world: World) -> tuple[int, int, int]:
        """(groups of a collection, groups of a minibatch, completions of a group), checked against one
        another.
        """
        size = self.completions or world.problem.data.completions
        collection = self.collection or size * world.problem.prompts.train
        minibatch = self.minibatch or collection
        if collection % minibatch or minibatch % size:
            raise ConfigError(
                "B, M and C do not fit",
                got=f"B {collection}, M {minibatch}, C {size}",
                expected="B a multiple of M, and M of C",
            )
        groups = collection // size
        if self.prompts == "fresh" and not world.has_prompts:
            raise ConfigError(
                "prompts has no effect where there are none", got=self.prompts, do="Leave it out"
            )
        if self.prompts == "train" and world.has_prompts and groups != world.problem.prompts.train:
            raise ConfigError(
                "A collection has a group for each training prompt",
                got=f"{groups} groups",
                expected=f"{world.problem.prompts.train}",
                do="Set prompts to fresh, or contexts.train",
            )
        return groups, minibatch // size, size


@dataclass(frozen=True, kw_only=True)
class Track:
    """What was measured: for each name the values [evaluations, S]; counters are the same for all seeds."""

    steps: list[int]
    measures: dict[str, np.ndarray]
    counters: dict[str, list[int]]

    def final(self, name: str) -> np.ndarray:
        return self.measures[name][-1]


@dataclass(frozen=True, kw_only=True)
class _Collection:
    prompts: Tensor
    completions: Tensor
    rewards: Tensor
    behaviour: (
        Tensor | None
    )  # log-probabilities [S, rows, V]; None where the reference is taken for the sampler
    flipped: Tensor | None


def run(world: World, method: Method, loop: Loop, learning_rate: float) -> Track:
    """Trains the policy of every seed and measures it exactly. No gradient is clipped: a norm would mix
    seeds.
    """
    groups, minibatch, size = loop.sizes(world)
    policy, objective = world.policy(), method.objective
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate, fused=True)
    states = [objective.initial_state() if isinstance(objective, Coupled) else None] * world.num_seeds
    recorder = _Recorder(world)
    done, drawn, queries, seen = 0, 0, 0, 0
    while done < loop.steps:
        gathered = _gather(world, method, policy, loop, groups, size)
        drawn, queries = drawn + groups * size, queries + groups * size
        seen = seen + groups if loop.prompts == "fresh" or not seen else seen
        counters = {"samples_drawn": drawn, "reward_queries": queries, "prompts_seen": seen}
        epoch = 0
        whole = (
            make_step(world, method, gathered.completions, gathered.rewards, gathered.flipped)
            if minibatch == groups
            else None
        )
        while done < loop.steps and (loop.source == "data" or epoch < (loop.epochs or 1)):
            order = None if whole else world.orders(groups)
            for start in range(0, groups, minibatch):
                if done % loop.eval_every == 0:
                    recorder.record(done, policy, gathered, counters | {"grad_steps": done})
                piece = (
                    gathered if order is None else _part(world, gathered, order[:, start : start + minibatch])
                )
                step = whole or make_step(world, method, piece.completions, piece.rewards, piece.flipped)
                logits = policy(piece.prompts)
                ref = world.ref_of(logits)
                scores = token_scores(logits, ref, piece.behaviour, step.tokens, objective.needs)
                mismatched = None
                if isinstance(objective, Coupled) and "mismatched" in objective.couples:
                    mismatched = token_scores(logits, ref, piece.behaviour, step.mismatched, objective.needs)
                losses, states = seed_losses(objective, scores, mismatched, step, states)
                _check(losses, world, done)
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                done += 1
                if done == loop.steps:
                    break
            epoch += 1
    recorder.record(done, policy, gathered, counters | {"grad_steps": done})
    return recorder.track()


def _gather(world: World, method: Method, policy, loop: Loop, groups: int, size: int) -> _Collection:
    prompts = world.train_prompts if loop.prompts == "train" else world.fresh_prompts(groups)
    behaviour = None
    if loop.source == "data":
        completions = world.sample_data(groups, size)
    else:
        with torch.no_grad():
            logits = policy(prompts)
        completions, behaviour = world.sample(logits, groups, size), logits.log_softmax(-1)
    rewards = world.rewards(
        completions, true=loop.source == "data"
    )  # the author of the data also scored them
    flipped = None
    if world.problem.data.noise and pairs_wanted(method):
        shape = pair_places(rewards, method)[0].shape[1:]
        flipped = world.uniform("noise", tuple(shape)) < world.problem.data.noise
    return _Collection(
        prompts=prompts, completions=completions, rewards=rewards, behaviour=behaviour, flipped=flipped
    )


def _part(world: World, whole: _Collection, chosen: Tensor) -> _Collection:
    """Some groups [S, m] of each seed's collection."""

    def taken(values: Tensor) -> Tensor:
        index = chosen.view(*chosen.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)

    prompts, behaviour = whole.prompts, whole.behaviour
    if world.has_prompts:
        prompts = prompts.gather(1, chosen) if prompts.ndim == 2 else taken(prompts)
        if behaviour is not None:
            behaviour = taken(behaviour.unflatten(1, (-1, world.tree.num_rows))).flatten(1, 2)
    return _Collection(
        prompts=prompts,
        completions=taken(whole.completions),
        rewards=taken(whole.rewards),
        behaviour=behaviour,
        flipped=None if whole.flipped is None else taken(whole.flipped),
    )


def _check(losses: Tensor, world: World, done: int) -> None:
    bad = ~torch.isfinite(losses)
    if bool(bad.any()):
        seeds = [seed for seed, is_bad in zip(world.seeds, bad.tolist(), strict=True) if is_bad]
        raise DivergenceError(
            "The loss is not finite", got=f"step {done + 1} of seeds {seeds}", do="Lower the learning rate"
        )


class _Recorder:
    """Exact measures on held-out prompts, and the log-ratios of the collection's best completions and of the
    others.
    """

    def __init__(self, world: World) -> None:
        self._world, self._steps = world, []
        self._measures: dict[str, list[Tensor]] = {}
        self._counters: dict[str, list[int]] = {}

    @torch.no_grad()
    def record(self, done: int, policy, gathered: _Collection, counters: dict[str, int]) -> None:
        if self._steps and self._steps[-1] == done:
            return
        self._steps.append(done)
        measured = self._world.measure(policy) | self._of_collection(policy, gathered)
        for name, value in measured.items():
            self._measures.setdefault(name, []).append(value.double())
        for name, count in counters.items():
            self._counters.setdefault(name, []).append(count)

    def _of_collection(self, policy, gathered: _Collection) -> dict[str, Tensor]:
        """Mean over the first groups of the log-ratio of the best completion, and of the mean of the others."""
        world = self._world
        few = torch.arange(min(MEASURED_GROUPS, gathered.rewards.shape[1])).expand(world.num_seeds, -1)
        gathered = _part(world, gathered, few)
        shape = gathered.rewards.shape
        logits = policy(gathered.prompts)
        tokens = world.tokens(gathered.completions)
        scores = token_scores(logits, world.ref_of(logits), None, tokens, frozenset({"ref_logp"}))
        assert scores.ref_logp is not None
        ratio = torch.segment_reduce(
            scores.logp - scores.ref_logp, "sum", lengths=tokens.lengths, unsafe=True
        ).view(shape)
        best = gathered.rewards.argmax(-1, keepdim=True)
        highest = ratio.gather(2, best)
        found = {"log_ratio/best": highest.mean((1, 2))}
        if shape[2] > 1:
            found["log_ratio/others"] = ((ratio.sum(2, keepdim=True) - highest) / (shape[2] - 1)).mean((1, 2))
        return found

    def track(self) -> Track:
        return Track(
            steps=self._steps,
            counters=self._counters,
            measures={name: torch.stack(values).numpy() for name, values in self._measures.items()},
        )
