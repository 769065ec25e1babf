"""From prompts to groups that can be learned from: draw completions, judge them, choose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from preftune.data.fit import take_completions
from preftune.data.masks import joined_masks, ones_of
from preftune.data.render import Renderer
from preftune.environments.drawers import local_drawer, server_drawer
from preftune.environments.judged import judged_rollouts
from preftune.environments.rollout import Columns, Rollouts, rollout_columns
from preftune.errors import ConfigError, check_range
from preftune.objectives.base import Opponent
from preftune.rewards import TIMEOUT_S, AnyReward, Verdicts, ask
from preftune.rewards.questions import questions
from preftune.sampling.client import ServerOptions
from preftune.sampling.engine import Engine
from preftune.sampling.prefix import PrefixOptions, behind, with_beginnings
from preftune.sampling.sample import Blend, SampleOptions, sample
from preftune.sampling.sampled import Sampled, sampled_group
from preftune.sampling.server import sample_server_tokens
from preftune.selection.apply import apply
from preftune.selection.choices import NO_PAIR, NO_REWARD, Makes, Selection
from preftune.selection.rules import make_selection
from preftune.train.onpolicy.credit import StepUse, with_answer_rewards, with_step_rewards
from preftune.types import SOURCES, Group, Hybrid, Labels, Pairs, Record, Rewards, Signal

_MAKES: Mapping[type[Signal], tuple[Makes, ...]] = {
    Pairs: ("pairs",),
    Labels: ("labels", "pairs"),
    Rewards: ("rewards",),
    Hybrid: ("pairs",),
}
_USUAL = {Pairs: "best-vs-worst", Labels: "best-vs-worst", Hybrid: "best-vs-worst"}


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """How an on-policy run gathers what it learns from.

    In the words of Tajwar et al. (2024), section 1.2 of whose algorithm this is: C is
    `sampling.num_completions`, B is `prompts` times C, M is `batch_size` times C, and T is `epochs`.

    Args:
        prompts: prompts of a collection; as many as a step has groups (`batch_size`) when not given, which is
            on-policy in the strict sense: every sample is drawn from the policy that learns from it.
        epochs: passes over a collection before the next one is drawn.
        replay: number of earlier collections that are used again together with the newest.
        lag: collections by which the sampler lags behind, as if sampling and training ran in parallel.
        opponent: what else answers each prompt, for objectives that compare with it: once the "reference" (xpo,
            nash-md), once a "mixture" of policy and reference, with the logits (1 - s) z + s z_ref (nash-md and
            objectives on pairs), or "two-sided" (objectives on pairs): once the mixture with -s and once that
            with s, as a separate pair.
        opponent_share: s, in [-1, 1) and not 0; below 0 the mixture leads away from the reference.
        data_share: share of the groups that come from the completions in `data`, in [0, 1); by default 0, and
            0.5 with source "hybrid".
        selection: how rewards become pairs or labels; by default the best against the worst completion of a
            prompt for objectives on pairs or labels, and everything for objectives on rewards.
        selection_settings: its parameters, for instance {"min_gap": 0.2}.
        fill: draw further prompts in place of those that teach nothing (DAPO's dynamic sampling), at most 10
            times.
        eval_completions: completions of each held-out prompt at an evaluation.
        sampler_gap: the most by which sampler and trainer may differ, in nats per token on average; by
            default 0.001 in fp32 and 0.1 in bf16.
        correction: weights for a sampler whose probabilities differ from the trainer's, on the gradient of
            objectives on rewards: "truncate" importance ratios at their bounds (TIS), "mask" what is outside
            (MIS, IcePop), or "none"; "auto" is "truncate" with a server.
        correction_level: ratios of each "token", or of the whole "sequence".
        correction_min: lower bound of the ratios.
        correction_max: upper bound of the ratios; others use 2 for TIS (ms-swift), and 0.5 and
                5 for IcePop (prime-rl).
        restart_s: with a server: seconds to wait for it when it is gone after it has drawn for the run.
        reward_timeout_s: seconds that a reward function may take for a collection.
        reward_process: run reward functions of yours in separate processes, which the time limit kills; a
            thread, in which they run otherwise, cannot be stopped.
    """

    prompts: int | None = None
    epochs: int = 1
    replay: int = 0
    lag: int = 0
    opponent: Opponent = "none"
    opponent_share: float = 0.5
    data_share: float | None = None
    selection: str | None = None
    selection_settings: dict[str, Any] = field(default_factory=dict)
    fill: bool = False
    eval_completions: int = 1
    sampler_gap: float | None = None
    correction: Literal["auto", "none", "truncate", "mask"] = "auto"
    correction_level: Literal["token", "sequence"] = "token"
    correction_min: float = 0.0
    correction_max: float = 2.0
    restart_s: float = 600.0
    reward_timeout_s: float = TIMEOUT_S
    reward_process: bool = False

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "prompts", "epochs", "eval_completions", prefix="collect.")
        check_range(self, "[0, inf)", "replay", "lag", "restart_s", prefix="collect.")
        check_range(self, "[0, 1)", "correction_min", prefix="collect.")
        check_range(self, "(1, inf)", "correction_max", prefix="collect.")
        check_range(self, "[-1, 1)", "opponent_share", prefix="collect.")
        check_range(self, "[0, 1)", "data_share", prefix="collect.")
        check_range(self, "(0, inf)", "sampler_gap", "reward_timeout_s", prefix="collect.")
        if self.opponent_share != 0.5 and self.opponent not in ("mixture", "two-sided"):
            raise ConfigError(
                "collect.opponent_share is of a mixture",
                got=f"collect.opponent {self.opponent}",
                do="Leave it out, or set --collect.opponent mixture",
            )
        if self.opponent_share == 0 or (self.opponent == "two-sided" and self.opponent_share < 0):
            raise ConfigError(
                "collect.opponent_share is out of range",
                got=f"{self.opponent_share:g} with collect.opponent {self.opponent}",
                expected="above 0 for two sides" if self.opponent == "two-sided" else "a share other than 0",
            )
        if self.selection_settings and self.selection is None:
            raise ConfigError(
                "collect.selection_settings belong to a selection",
                got="none",
                do="Set --collect.selection NAME",
            )

    @property
    def num_opponents(self) -> int:
        """Completions of each prompt that others than the policy write."""
        return {"none": 0, "two-sided": 2}.get(self.opponent, 1)


def chosen_selection(options: CollectOptions, signal: type[Signal]) -> Selection | None:
    """The selection for objectives that learn from this signal; None takes the rewards of all completions as
    they are.
    """
    name = options.selection if options.selection is not None else _USUAL.get(signal)
    if name is None:
        return None
    selection = make_selection(name, **options.selection_settings)
    if selection.makes not in _MAKES[signal]:
        raise ConfigError(
            f"The selection {name} makes {selection.makes}",
            got=f"an objective that learns from {signal.__name__.lower()}",
            expected=" or ".join(_MAKES[signal]),
            do="Choose another --collect.selection",
        )
    return selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Sampling and reward settings of a run; without a reward, samples stay unscored. With `rollouts` an
    environment answers the policy between its turns.
    """

    renderer: Renderer
    sampling: SampleOptions
    reward: AnyReward | None
    reward_name: str
    timeout_s: float
    engine: Engine
    prefix: PrefixOptions = field(default_factory=PrefixOptions)
    step_use: StepUse = field(default_factory=StepUse)
    rollouts: Rollouts | None = None

    @property
    def budget(self) -> int:
        """Tokens that a completion may have."""
        return self.sampling.max_new_tokens if self.rollouts is None else self.rollouts.options.total_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """Completions without scores yet: groups with `behaviour_logp`, and next to them what judging
    needs. `columns` are those of rollouts, as JSON has them, with an entry for each completion of each prompt.
    """

    groups: tuple[Group, ...]
    texts: tuple[tuple[str, ...], ...]
    ended: tuple[tuple[bool, ...], ...]
    columns: Columns = field(default_factory=dict)


def draw(
    model: PreTrainedModel,
    judge: Sampler,
    prompts: Sequence[Group],
    seed: int,
    keys: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    server: ServerOptions | None = None,
    blend: Blend | None = None,
    given: Sequence[np.ndarray] | None = None,
    records: Sequence[Record] = (),
) -> tuple[Draw, list[list[Sampled]]]:
    """Sample completions of each prompt: from the model, from its mixture with another model, or from a
    server that holds it. Also returns the samples as the sampler made them. `records` are those of the prompts,
    which an environment reads.

    A beginning that is `given` is part of the texts; in the groups it is behind the prompt, as context, where
    it is computed once for all completions.
    """
    tokens = behind([group.prompt for group in prompts], given)
    columns: Columns = {}
    if judge.rollouts is not None:
        drawer = (
            local_drawer(model, judge.renderer, judge.sampling, seed, judge.engine, blend)
            if server is None
            else server_drawer(server, judge.renderer, judge.sampling, seed)
        )
        found = judge.rollouts.draw(
            drawer, records, tokens, keys, judge.sampling.num_completions, seed, progress
        )
        drawn, columns = [[one.sampled for one in ones] for ones in found], rollout_columns(found)
    elif server is None:
        drawn = sample(
            model,
            judge.renderer,
            tokens,
            judge.sampling,
            seed,
            progress,
            keys=keys,
            engine=judge.engine,
            blend=blend,
        )
    else:
        drawn = sample_server_tokens(server, judge.renderer, tokens, judge.sampling, seed, keys, progress)
    groups = [
        sampled_group(ids, ones, group.origin)
        for group, ids, ones in zip(prompts, tokens, drawn, strict=True)
    ]
    whole = with_beginnings(drawn, given, judge.renderer)
    texts = tuple(tuple(one.text for one in ones) for ones in whole)
    ended = tuple(tuple(one.ended for one in ones) for ones in drawn)
    return Draw(groups=tuple(groups), texts=texts, ended=ended, columns=columns), drawn


def joined_draws(parts: Sequence[tuple[Draw, list[list[Sampled]]]]) -> tuple[Draw, list[list[Sampled]]]:
    """Merge per-rank draws in the order of the prompts: rank r drew prompts r, r + size, ..."""
    count = sum(len(draw.groups) for draw, _ in parts)
    order = [divmod(place, len(parts)) for place in range(count)]
    return Draw(
        groups=tuple(parts[rank][0].groups[i] for i, rank in order),
        texts=tuple(parts[rank][0].texts[i] for i, rank in order),
        ended=tuple(parts[rank][0].ended[i] for i, rank in order),
        columns={
            name: tuple(parts[rank][0].columns[name][i] for i, rank in order) for name in parts[0][0].columns
        },
    ), [parts[rank][1][i] for i, rank in order]


def with_opponents(drawn: Draw, opponents: Draw) -> Draw:
    """Each group with the one completion of its opponent behind what it holds."""
    groups = []
    for group, other in zip(drawn.groups, opponents.groups, strict=True):
        known = group.sources or (SOURCES.index("policy"),) * len(group.completions)
        sources = (*known, SOURCES.index("reference"))
        groups.append(
            replace(
                group,
                completions=(*group.completions, *other.completions),
                scored=joined_masks(group, other),
                sources=sources,
                behaviour_logp=(*group.behaviour_logp, *other.behaviour_logp),
                correction=(*group.correction, *ones_of(other)) if group.correction else (),
            )
        )
    texts = tuple((*one, *more) for one, more in zip(drawn.texts, opponents.texts, strict=True))
    ended = tuple((*one, *more) for one, more in zip(drawn.ended, opponents.ended, strict=True))
    columns = {
        name: tuple((*one, *more) for one, more in zip(values, opponents.columns[name], strict=True))
        for name, values in drawn.columns.items()
    }
    return Draw(groups=tuple(groups), texts=texts, ended=ended, columns=columns)


def win_rates_against_opponents(groups: Sequence[Group]) -> list[Group]:
    """Without the opponents, the last completion of each: a completion's reward becomes P(it beats the
    opponent's), a tie 1/2.

    Without the opponent's reward nothing is known of a group's, and none is given.
    """
    found = []
    for group in groups:
        *mine, other = group.rewards
        rates = tuple(
            None if one is None or other is None else 0.5 * ((one > other) + (one >= other)) for one in mine
        )
        found.append(replace(take_completions(group, range(len(mine)), ()), rewards=rates, sources=()))
    return found


def judge_draw(
    drawn: Draw, judge: Sampler, records: Sequence[Record], step: int
) -> tuple[list[Group], Verdicts]:
    """The groups with a reward for each completion (None where it has no opinion), and what the reward said;
    without a reward as they are.

    The reward is called once on all completions; `records` are those of the prompts, for their other columns.
    `step` is how many optimizer steps the policy has done, which a reward sees as `training_step`.
    """
    if judge.reward is None:
        return list(drawn.groups), Verdicts(rewards=[])
    counts = [group.num_scored for group in drawn.groups]
    asked = questions(records, drawn.texts, drawn.ended, counts, judge.budget, step, drawn.columns)
    verdicts = ask(
        judge.reward, judge.reward_name, asked.prompts, asked.completions, asked.columns, judge.timeout_s
    )
    verdicts = judged_rollouts(verdicts, drawn.columns, judge.reward_name)
    judge.step_use.check(verdicts, judge.reward_name)
    rewards, steps = iter(verdicts.rewards), iter(verdicts.steps)
    groups = []
    for group, texts in zip(drawn.groups, drawn.texts, strict=True):
        count = len(group.completions)
        judged = replace(group, rewards=tuple(islice(rewards, count)))
        if verdicts.by_answer and verdicts.steps:
            judged = with_answer_rewards(judged, list(islice(steps, count)))
        elif verdicts.steps:
            judged = with_step_rewards(judged, texts, list(islice(steps, count)), judge.renderer)
        groups.append(judged)
    return groups, verdicts


def select_groups(
    groups: Sequence[Group], selection: Selection | None, seed: int
) -> tuple[list[Group], Mapping[str, int]]:
    """Groups with what the selection made of their rewards, and how many were dropped for which reason.

    Without a selection the completions that have a reward stay.
    """
    if selection is not None:
        kept, selected = apply(selection, groups, seed)
        return kept, selected.dropped
    known = {
        i: [k for k, reward in enumerate(group.rewards) if reward is not None]
        for i, group in enumerate(groups)
    }
    kept = [take_completions(groups[i], places, ()) for i, places in known.items() if places]
    return kept, {NO_REWARD: len(groups) - len(kept)} if len(kept) < len(groups) else {}


def select_sides(
    groups: Sequence[Group], selection: Selection, seed: int
) -> tuple[list[Group], Mapping[str, int]]:
    """`select_groups` on the policy's own completions and on the last two apart; the pairs of both are in one
    group. A prompt is dropped if neither part has a pair.
    """
    kept: list[Group] = []
    halves: list[list[Group | None]] = []
    for part in (slice(0, -2), slice(-2, None)):
        places = [range(len(group.completions))[part] for group in groups]
        half = [take_completions(group, place, ()) for group, place in zip(groups, places, strict=True)]
        stay, selected = apply(selection, half, seed)
        left = iter(stay)
        halves.append([None if choice is None else next(left) for choice in selected.choices])
    for own, sides in zip(*halves, strict=True):
        whole = own or sides
        if own is not None and sides is not None:
            whole = _joined(own, sides)
        kept += [] if whole is None else [whole]
    return kept, {NO_PAIR: len(groups) - len(kept)} if len(kept) < len(groups) else {}


def _joined(one: Group, two: Group) -> Group:
    """Completions and pairs of two groups of a prompt."""
    first = len(one.completions)
    return replace(
        one,
        completions=(*one.completions, *two.completions),
        scored=joined_masks(one, two),
        pairs=(*one.pairs, *((first + c, first + r) for c, r in two.pairs)),
        rewards=(*one.rewards, *two.rewards),
        sources=(*one.sources, *two.sources),
        behaviour_logp=(*one.behaviour_logp, *two.behaviour_logp),
        correction=(),  # of pairs, which are not corrected
    )


def beside_pairs(paired: Sequence[Group], drawn: Sequence[Group]) -> list[Group]:
    """Groups of the data, each with the policy's samples of its prompt behind its completions."""
    found = []
    for group, samples in zip(paired, drawn, strict=True):
        new = samples.completions
        sources = (SOURCES.index("data"),) * len(group.completions) + (SOURCES.index("policy"),) * len(new)
        masks = joined_masks(group, samples)
        found.append(replace(group, completions=(*group.completions, *new), scored=masks, sources=sources))
    return found
