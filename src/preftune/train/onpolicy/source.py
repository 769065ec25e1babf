"""The on-policy source: it draws collections from the policy, has them scored, and hands out their groups
step by step.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from preftune.environments.base import RolloutOptions
from preftune.errors import TrainingError
from preftune.model.cost import Shape, utilisation, work_of
from preftune.model.layout import LayoutOptions, collate, split_micro_batches
from preftune.model.policy import Policy, micro_batches, score, score_groups
from preftune.progress import Reporter
from preftune.sampling.agreement import agreement, check_agreement
from preftune.sampling.prefix import PrefixOptions, beginnings
from preftune.sampling.sample import Blend, SampleOptions
from preftune.sampling.sampled import Sampled
from preftune.selection.choices import Selection
from preftune.train.budget import Budget
from preftune.train.onpolicy.collect import (
    CollectOptions,
    Draw,
    Sampler,
    beside_pairs,
    draw,
    joined_draws,
    judge_draw,
    select_groups,
    select_sides,
    win_rates_against_opponents,
    with_opponents,
)
from preftune.train.onpolicy.correction import Correction, correction_metrics
from preftune.train.onpolicy.credit import StepUse
from preftune.train.onpolicy.follower import Follower
from preftune.train.onpolicy.metrics import Drawn, News
from preftune.train.onpolicy.state import Collection, SourceState, plain_state, state_of
from preftune.train.processes import ALONE, Processes
from preftune.train.sources import OfflineSource, Taken, num_steps_of, step_slice
from preftune.types import Group, Record

TIES, OPPONENTS = 2**41, 2**42
"""Where the numbers of the noise begin that breaks ties, and of that which opponents draw with; beyond those
of draws.
"""

MOST_DRAWS = 10
"""Draws for one collection before the run stops: by then the reward tells no completions apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptData:
    """Data of an on-policy run."""

    prompts: Sequence[
        Group
    ]  # without completions; where nobody judges samples, with those of the data and pairs
    records: Mapping[str, Record]  # of all prompts, by origin, held-out prompts included
    groups: Sequence[Group]  # learned from as they are, with collect.data_share


@dataclass(frozen=True, kw_only=True, eq=False)
class CollectPlan:
    """How collections are sampled and iterated."""

    options: CollectOptions
    sampling: SampleOptions
    prefix: PrefixOptions
    reward: str  # as it was written
    rollout: RolloutOptions
    selection: Selection | None
    layout: LayoutOptions
    batch_size: int
    least: int  # groups of a step; a smaller remainder joins the step before it
    seed: int
    wants_values: bool  # whether groups carry the scalar head's values at sampling
    step_use: StepUse
    tolerance: float  # nats per token by which sampler and trainer may differ
    correction: Correction | None


class OnPolicySource:
    """Collections of the policy's own completions.

    It holds the policy, which the training moves. Draws follow from the seed, their number and the policy's
    weights alone.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        judge: Sampler,
        material: PromptData,
        plan: CollectPlan,
        report: Reporter,
        follower: Follower | None = None,
        opponents: Sequence[Blend] = (),
        processes: Processes = ALONE,
    ):
        """Completions come from the server of `follower`, if there is one, and else from the policy in this
        process; one more of each of the `opponents` always from here. Several processes draw a share of the prompts
        each; all get everything.
        """
        self.processes, self.least = processes, plan.least
        self.policy, self.judge, self.options, self.selection = policy, judge, plan.options, plan.selection
        self.layout, self.batch_size, self.seed = plan.layout, plan.batch_size, plan.seed
        self.wants_values, self.tolerance, self.report = plan.wants_values, plan.tolerance, report
        self.correction = plan.correction
        self.prompts_each = plan.options.prompts if plan.options.prompts is not None else plan.batch_size
        self.records, self.follower, self.opponents = material.records, follower, opponents
        self._order = OfflineSource(groups=material.prompts, batch_size=self.prompts_each, seed=plan.seed)
        share = plan.options.data_share or 0.0
        self._data = OfflineSource(
            groups=material.groups,
            batch_size=max(1, round(share / (1 - share) * self.prompts_each)),
            seed=plan.seed,
        )
        self._state = SourceState()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the prompts, if nothing is left out and drawn again."""
        return self._order.steps_per_epoch * self._steps(self._planned())

    def steps_within(self, samples: int) -> int:
        """Steps that a given number of completions buy, if nothing is left out."""
        sizes: list[int] = []
        while self._samples(len(sizes)) <= samples:
            samples -= self._samples(len(sizes))
            sizes.append(self._num_prompts(len(sizes)))
        from_data = self._data.batch_size if self._data.groups else 0
        used = sizes[: max(0, len(sizes) - self.options.lag)]
        pools = [used[max(0, k - self.options.replay) : k + 1] for k in range(len(used))]
        return sum(self._steps(sum(pool) + len(pool) * from_data) for pool in pools)

    def within(self, budget: Budget) -> Budget:
        """The budget with no more steps than its completions buy."""
        if budget.samples is None:
            return budget
        return replace(budget, steps=min(budget.steps, self.steps_within(budget.samples)))

    def draws(self, step: int) -> int:
        """Completions to draw before a step can begin, if no draw is in vain."""
        state = self._state
        if step - state.begun <= self._steps(sum(len(collection.groups) for collection in state.current)):
            return 0
        missing = max(0, self.options.lag + 1 - len(state.waiting))
        return sum(self._samples(state.draws + k) for k in range(missing))

    def _num_prompts(self, draw: int) -> int:
        """Prompts of draw 0, 1, ...; the last draw of a pass takes the remainder."""
        place = draw % self._order.steps_per_epoch
        return min(self.prompts_each, len(self._order.groups) - place * self.prompts_each)

    def _samples(self, draw: int) -> int:
        return self._num_prompts(draw) * (self.judge.sampling.num_completions + len(self.opponents))

    def _planned(self) -> int:
        """Groups that are gone over together."""
        from_data = self._data.batch_size if self._data.groups else 0
        return (self.prompts_each + from_data) * (1 + self.options.replay)

    def _steps(self, num_groups: int) -> int:
        return self.options.epochs * num_steps_of(num_groups, self.batch_size, self.least)

    def supply(self, step: int) -> Taken:
        """Groups of step 1, 2, ...; draws a collection first when the one before has been gone over `epochs`
        times.

        No groups at all mean that nothing is left to learn: the policy's completions of a prompt have the same
        reward.
        """
        state, news = self._state, Taken(groups=[])
        pool = [group for collection in state.current for group in collection.groups]
        if step - state.begun > self._steps(len(pool)):
            news = self._advance(step)
            if state.begun != step - 1:
                return news
            pool = [group for collection in state.current for group in collection.groups]
        drawn_at = [collection.step for collection in state.current for _ in collection.groups]
        epoch, place = divmod(step - 1 - state.begun, num_steps_of(len(pool), self.batch_size, self.least))
        order = np.random.default_rng([self.seed, 1, state.current[-1].number, epoch]).permutation(len(pool))
        chosen = order[step_slice(place, len(pool), self.batch_size, self.least)]
        staleness = float(np.mean([step - 1 - drawn_at[i] for i in chosen]))
        return replace(
            news, groups=[pool[i] for i in chosen], metrics={**news.metrics, "staleness": staleness}
        )

    def _advance(self, step: int) -> Taken:
        """The next collection comes into use, if there is one."""
        state, started, news = self._state, time.perf_counter(), News()
        while len(state.waiting) <= self.options.lag:
            before = len(state.waiting)
            news = self._collect(step, news)
            if len(state.waiting) == before:
                break  # nothing more comes: what waits is still used
        if not state.waiting:
            return news.taken(step, time.perf_counter() - started, self._used)
        state.current = [*state.current, state.waiting.pop(0)][-1 - self.options.replay :]
        state.begun = step - 1
        return news.taken(step, time.perf_counter() - started, self._used)

    def _used(self, operations: float, seconds: float) -> float:
        return utilisation(
            operations, seconds, self.policy.device, self.policy.precision, self.processes.size
        )

    def _collect(self, step: int, news: News) -> News:
        """Draw until the collection holds something (or is full, with `fill`), and put it behind those that
        wait.
        """
        state = self._state
        for _ in range(MOST_DRAWS):
            news = self._gather(step, news)
            if state.gathered and (not self.options.fill or len(state.gathered) >= self.prompts_each):
                break
        if not state.gathered and step > 1:
            return news
        if not state.gathered:
            reasons = ", ".join(f"{count} prompts: {reason}" for reason, count in news.dropped.items())
            raise TrainingError(
                "The completions teach nothing",
                got=f"after {MOST_DRAWS} draws {reasons}",
                expected="completions of one prompt with different rewards",
                do="Raise --sampling.num_completions or the temperature, or look at the reward",
            )
        groups = state.gathered[: self.prompts_each]
        if self._data.groups:
            groups = [*groups, *self._data.take(state.collections + 1)]
        state.waiting.append(Collection(number=state.collections, step=step - 1, groups=tuple(groups)))
        state.collections += 1
        state.gathered = []
        return news

    def _gather(self, step: int, news: News) -> News:
        """One draw, scored: it stays in the state until it is, so that a reward that fails loses nothing."""
        state = self._state
        made = None
        if state.unjudged is None:
            state.unjudged, made = self._draw(self._order.take(state.draws + 1))
            state.draws += 1
        drawn = state.unjudged
        records = [self.records[group.origin] for group in drawn.groups]
        groups, verdicts = self.processes.from_main(lambda: judge_draw(drawn, self.judge, records, step - 1))
        kept, dropped = self._learned(groups)
        if self.wants_values:
            kept = self._with_values(kept)
        state.gathered += kept
        state.unjudged = None
        return news.joined(drawn, groups, records, verdicts, dropped, made)

    def _learned(self, groups: Sequence[Group]) -> tuple[list[Group], Mapping[str, int]]:
        """What is learned from scored groups, and how many were dropped for which reason."""
        state, seed = self._state, draw_seed(self.seed, TIES + self._state.draws)
        if self.judge.reward is None:
            return beside_pairs(self._order.take(state.draws), groups), {}
        if self.opponents and self.selection is None:
            return select_groups(win_rates_against_opponents(groups), None, seed)
        if len(self.opponents) > 1 and self.selection is not None:
            return select_sides(groups, self.selection, seed)
        return select_groups(groups, self.selection, seed)

    def drawn(
        self,
        prompts: Sequence[Group],
        judge: Sampler,
        number: int,
        progress: Callable[[int, int], None],
        blend: Blend | None = None,
        given: Sequence[np.ndarray] | None = None,
    ) -> tuple[Draw, list[list[Sampled]]]:
        """Completions of the policy as it is now, or of a blend; `number` determines the noise. They continue from
        what is `given` for each prompt.
        """
        seed, places = draw_seed(self.seed, number), list(range(len(prompts)))
        if self.follower is not None and blend is None:
            records = [self.records[group.origin] for group in prompts]
            return self.follower.draw(
                lambda server: draw(
                    self.policy.model,
                    judge,
                    prompts,
                    seed,
                    places,
                    progress,
                    server=server,
                    given=given,
                    records=records,
                )
            )
        mine = places[self.processes.rank :: self.processes.size]
        low = torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.policy.precision == "bf16")
        here = None if given is None else [given[i] for i in mine]
        asked = [prompts[i] for i in mine]
        with self.policy.whole(), nullcontext() if blend is None else blend.around(), low:
            own = draw(
                self.policy.model,
                judge,
                asked,
                seed,
                mine,
                progress,
                blend=blend,
                given=here,
                records=[self.records[group.origin] for group in asked],
            )
        return joined_draws(self.processes.gather(own)) if self.processes.size > 1 else own

    def _draw(self, prompts: Sequence[Group]) -> tuple[Draw, Drawn]:
        """Completions; stops if the trainer's log-probabilities of some of them are not the sampler's."""
        policy, number, started = self.policy, self._state.draws, time.perf_counter()
        records = [self.records[group.origin] for group in prompts]
        given = beginnings(self.judge.renderer, records, self.judge.prefix)

        def tell(done: int, of: int) -> None:
            self.report.update("sample", done, of)

        drawn, ones = self.drawn(prompts, self.judge, number, tell, given=given)
        seconds = time.perf_counter() - started
        few = split_micro_batches(drawn.groups, self.layout, policy.sharing)[0]
        found = agreement(policy, [drawn.groups[i].prompt for i in few], [ones[i] for i in few], self.layout)
        check_agreement(found, self.tolerance)
        more: dict[str, float] = {}
        if self.follower is not None:
            more |= self.follower.metrics()
            self.follower.probe(drawn.groups)
        if self.correction is not None:
            drawn, corrected = self._corrected(drawn, self.correction)
            more |= corrected
        here = self.follower is None
        operations = work_of(Shape.of(policy.model), drawn.groups).forward if here else 0.0
        made = Drawn(gap=found.mean, seconds=seconds, must_be_done=operations, more=more)
        once = replace(self.judge, sampling=replace(self.judge.sampling, num_completions=1))
        for place, blend in enumerate(self.opponents):
            noise = (1 + place) * OPPONENTS + number
            written, _ = self.drawn(prompts, once, noise, lambda done, of: None, blend)
            drawn = with_opponents(drawn, written)
        return drawn, made

    def _corrected(self, drawn: Draw, correction: Correction) -> tuple[Draw, dict[str, float]]:
        """Groups with weights for the sampler that drew them, and with the policy's own log-probabilities as those
        that ratios are relative to.
        """
        groups = list(drawn.groups)
        for indices, part in micro_batches(self.policy, groups, self.layout):
            scored = score_groups(self.policy, part, self.layout, self.judge.sampling.temperature)
            for index, logps in zip(indices, scored, strict=True):
                told = groups[index].behaviour_logp
                weights = tuple(map(correction.weights, logps, told))
                groups[index] = replace(groups[index], behaviour_logp=tuple(logps), correction=weights)
        policy, sampler = (
            [one for group in part for one in group.behaviour_logp] for part in (groups, drawn.groups)
        )
        return replace(drawn, groups=tuple(groups)), correction_metrics(correction, policy, sampler)

    @torch.no_grad()
    def _with_values(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the scalar head's values as they are at sampling."""
        found = list(groups)
        for indices, part in micro_batches(self.policy, groups, self.layout):
            batch = collate(part, self.layout, self.policy.sharing)
            value = score(self.policy, batch, frozenset({"value"})).value
            assert value is not None
            parts = iter(value.float().cpu().split(batch.lengths.tolist()))
            for index in indices:
                values = tuple(next(parts).numpy() for _ in groups[index].completions)
                found[index] = replace(groups[index], behaviour_value=values)
        return found

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        text = json.dumps(plain_state(self._state))
        return {"json": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    def close(self) -> None:
        """Have a server forget what this run left there."""
        if self.follower is not None:
            self.follower.close()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._state = state_of(json.loads(bytes(tensors["json"].numpy()).decode()))


def draw_seed(seed: int, number: int) -> int:
    """Draws of one run differ, and so do those of two runs with neighboring seeds."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 2)
