"""What a model's own samples show about a data set: how near the data are, where the reward's peak lies, how
consistent labels are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from preftune.data.render import Renderer
from preftune.diagnosis.data_measures import OwnSamples
from preftune.diagnosis.data_rows import SignalRows
from preftune.errors import ConfigError, DataError
from preftune.measures.coverage import Nearness, nearness, reward_peak
from preftune.measures.formats import format_rewards
from preftune.measures.noise import MIN_PROMPTS, ModelAgreement, cross_validated
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, hidden_states, micro_batches, model_head, to_device
from preftune.model.scorer import make_scorer
from preftune.model.scoring import score_tokens
from preftune.progress import Reporter
from preftune.rewards import AnyReward, ask, check_columns
from preftune.rewards.questions import prompt_text, prompt_turns
from preftune.sampling.sample import SampleOptions, sample
from preftune.sampling.sampled import Sampled
from preftune.stats import Interval, cluster_means, mean_interval
from preftune.types import Group, Record

T = TypeVar("T")
COMPLETION_SIDES = ("all", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The prompts that are looked into: of each its number, and its records with their groups."""

    numbers: tuple[int, ...]
    members: tuple[tuple[tuple[Record, Group], ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the model makes of a completion, up to the budget of own samples."""

    logp: float  # mean per token, nats
    state: np.ndarray  # mean last hidden state of its tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedData:
    """Rewards of own samples [prompt][sample] and of the data's completions [prompt][record][completion];
    None: no opinion.
    """

    own: list[list[float | None]]
    data: list[list[list[float | None]]]


def choose_prompts(
    rows: SignalRows, model: PreTrainedModel, options: SampleOptions, most: int, seed: int
) -> Asked:
    """At most `most` prompts, drawn by the seed, of those that leave the model room for a completion."""
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    members: dict[int, list[tuple[Record, Group]]] = {}
    for record, group, number in zip(rows.records, rows.groups, rows.prompt, strict=True):
        # The last token of a completion is read here, too, for its state.
        if group is not None and (room is None or len(group.prompt) + options.max_new_tokens <= room):
            members.setdefault(number, []).append((record, group))
    if not members:
        raise DataError(
            "No prompt leaves the model room for a completion",
            got=f"a limit of {options.max_new_tokens}",
            expected=f"prompt and completion within {room} tokens",
            do="Lower max_new_tokens",
        )
    order = np.random.default_rng(seed).permutation(sorted(members))[:most]
    numbers = tuple(sorted(map(int, order)))
    return Asked(numbers=numbers, members=tuple(tuple(members[number]) for number in numbers))


def measure_own(
    rows: SignalRows,
    model: PreTrainedModel,
    renderer: Renderer,
    reward: tuple[str, AnyReward] | None,
    options: SampleOptions,
    *,
    max_prompts: int,
    seed: int,
    precision: str,
    layout: LayoutOptions,
    report: Reporter,
) -> tuple[OwnSamples, list[str]]:
    """Draw, score and judge; and what could not be measured."""
    asked = choose_prompts(rows, model, options, max_prompts, seed)
    if reward is not None:
        _check_reward(asked, *reward)
    readings = score_data_completions(model, asked, options.max_new_tokens, precision, layout, report)
    prompts = [members[0][1].prompt for members in asked.members]
    drawn = sample(
        model,
        renderer,
        prompts,
        options,
        seed,
        lambda done, of: report.update("sample", done, of),
        keys=asked.numbers,
    )
    own = [[float(one.logp.mean()) for one in ones if one.logp is not None] for ones in drawn]
    agreement = _label_agreement(asked, readings, seed)
    left_out = []
    if agreement is None:
        left_out.append(
            f"noise of the labels: needs {MIN_PROMPTS} prompts with different pairs; raise max_prompts or add data"
        )
    sizes = [size for members in asked.members for _, group in members for size in group.num_scored]
    found = OwnSamples(
        num_prompts=len(prompts),
        num_samples=options.num_completions,
        agreement=agreement,
        similarity=_similarity(asked, readings),
        near=_nearness(asked, readings, own),
        beyond_budget=float(np.mean([size > options.max_new_tokens for size in sizes])),
    )
    if reward is None:
        return found, [
            *left_out,
            "the reward's peak, and the reward against the preferences: no --reward was given",
        ]
    judged = reward_completions(asked, drawn, *reward, options.max_new_tokens)
    texts = [[one.text for one in ones] for ones in drawn]
    rewards = replace(_with_rewards(found, asked, judged), format_rewards=format_rewards(texts, judged.own))
    if rewards.peak is None:
        left_out.append("the reward's peak: for no prompt does the reward score both own samples and data")
    return rewards, left_out


# --- reading the data ---


@torch.no_grad()
def score_data_completions(
    model: PreTrainedModel, asked: Asked, budget: int, precision: str, layout: LayoutOptions, report: Reporter
) -> list[list[list[Reading]]]:
    """[prompt][record][completion]: one pass of the model over the data, each completion up to the budget."""
    policy = make_scorer(model, layout, precision, report.note)
    flat = [
        (p, r, _begun(group, budget))
        for p, members in enumerate(asked.members)
        for r, (_, group) in enumerate(members)
    ]
    groups = [group for _, _, group in flat]
    found: list[list[list[Reading]]] = [[[] for _ in members] for members in asked.members]
    tell = partial(report.update, "score")
    for indices, batch in micro_batches(policy, groups, layout, tell, read_last=True):
        parts = iter(_read(policy, batch, layout))
        for i in indices:
            p, r, group = flat[i]
            found[p][r] = [next(parts) for _ in group.completions]
    return found


def _begun(group: Group, budget: int) -> Group:
    """Each completion as far as an own sample could go: to the budget, and of a trajectory its first answer."""
    cut = []
    for k, ids in enumerate(group.completions):
        others = np.flatnonzero(~group.scored[k]) if group.scored else np.empty(0)
        cut.append(ids[: min(budget, int(others[0]) if len(others) else len(ids))])
    return replace(group, completions=tuple(cut), scored=())


def _read(policy: Policy, groups: Sequence[Group], layout: LayoutOptions) -> list[Reading]:
    batch = to_device(collate(groups, layout, policy.sharing, read_last=True), policy.device)
    assert batch.read_at is not None
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"):
        states = hidden_states(policy.model, batch, policy.sharing)
        logp = score_tokens(states[batch.predict_at], model_head(policy.model), batch.targets).logp
    lengths = batch.lengths.tolist()
    pieces = zip(logp.split(lengths), states[batch.read_at].split(lengths), strict=True)
    return [
        Reading(logp=float(one.mean()), state=state.double().mean(0).cpu().numpy()) for one, state in pieces
    ]


def _on_side(group: Group, side: str) -> list[int]:
    """The completions that are meant: all, or those that pairs (or labels) call chosen or rejected."""
    if side == "all":
        return list(range(len(group.completions)))
    place, sign = (0, 1) if side == "chosen" else (1, -1)
    return sorted(
        {pair[place] for pair in group.pairs} | {k for k, label in enumerate(group.labels) if label == sign}
    )


def _nearness(
    asked: Asked, readings: list[list[list[Reading]]], own: list[list[float]]
) -> dict[str, Nearness]:
    found = {}
    for side in COMPLETION_SIDES:
        data = [
            [readings[p][r][k].logp for r, (_, group) in enumerate(members) for k in _on_side(group, side)]
            for p, members in enumerate(asked.members)
        ]
        if (told := nearness(own, data)) is not None:
            found[side] = told
    return found


def _label_agreement(asked: Asked, readings: list[list[list[Reading]]], seed: int) -> ModelAgreement | None:
    """Features of a completion: its mean last hidden state, its length (tokens), its log-probability per
    token.
    """
    states, lengths, logps, clusters = [], [], [], []
    for p, (chosen, rejected), (c, r) in _pairs(asked, readings):
        states.append(chosen.state - rejected.state)
        lengths.append(c - r)
        logps.append(chosen.logp - rejected.logp)
        clusters.append(p)
    if not clusters:
        return None
    return cross_validated([np.stack(states), np.array(lengths, float), np.array(logps)], clusters, seed=seed)


def _pairs(
    asked: Asked, values: Sequence[Sequence[Sequence[T]]]
) -> Iterator[tuple[int, tuple[T, T], tuple[int, int]]]:
    """(prompt, the values of the chosen and the rejected completion, their lengths in tokens) of each pair."""
    for p, members in enumerate(asked.members):
        for (_, group), found in zip(members, values[p], strict=True):
            for c, r in group.pairs:
                yield p, (found[c], found[r]), (group.num_scored[c], group.num_scored[r])


def _similarity(asked: Asked, readings: list[list[list[Reading]]]) -> Interval | None:
    """Cosine of the mean last hidden states of the two sides of a pair, a prompt's pairs averaged first: 1 less it is
    the information content of Shen et al., 2024, arXiv 2409.09603.
    """
    cosines, clusters = [], []
    for p, sides, _ in _pairs(asked, readings):
        one, two = (side.state for side in sides)
        cosines.append(float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two))))
        clusters.append(p)
    return mean_interval(cluster_means(cosines, clusters)) if cosines else None


# --- judging ---


def _columns(asked: Asked) -> set[str]:
    return set.intersection(*(set(record.columns) for members in asked.members for record, _ in members))


_GIVEN = {"ended", "num_tokens", "budget", "prompt_turns"}


def _check_reward(asked: Asked, name: str, function: AnyReward) -> None:
    """What would fail after the samples were drawn is refused before."""
    check_columns(function, name, _columns(asked) | _GIVEN)
    for members in asked.members:
        for record, _ in members:
            if not all(isinstance(completion, str) for completion in record.completions):
                raise ConfigError(
                    "A reward judges answers of one turn",
                    got=f"a trajectory in {record.origin}",
                    expected="completions that are texts",
                    do="Leave --reward out",
                )


def reward_completions(
    asked: Asked, drawn: Sequence[Sequence[Sampled]], name: str, function: AnyReward, budget: int
) -> JudgedData:
    """The reward of own samples and of the data's completions, called once on all."""
    names = sorted(_columns(asked) - _GIVEN)
    entries = []  # (record, text, ended, tokens)
    for members, ones in zip(asked.members, drawn, strict=True):
        entries += [(members[0][0], one.text, one.ended, one.num_scored) for one in ones]
    for members in asked.members:
        for record, group in members:
            ended = record.ended or (True,) * len(record.completions)
            entries += [
                (record, text, ended[k], group.num_scored[k]) for k, text in enumerate(record.completions)
            ]
    columns: dict[str, object] = {key: [record.columns[key] for record, *_ in entries] for key in names}
    columns |= {
        "ended": [ended for _, _, ended, _ in entries],
        "num_tokens": [size for *_, size in entries],
        "budget": budget,
        "prompt_turns": [prompt_turns(record) for record, *_ in entries],
    }
    told = ask(
        function,
        name,
        [prompt_text(record) for record, *_ in entries],
        [str(text) for _, text, *_ in entries],
        columns,
    )
    rewards = iter(told.rewards)
    own = [[next(rewards) for _ in ones] for ones in drawn]
    data = [
        [[next(rewards) for _ in record.completions] for record, _ in members] for members in asked.members
    ]
    return JudgedData(own=own, data=data)


def _with_rewards(found: OwnSamples, asked: Asked, judged: JudgedData) -> OwnSamples:
    sides: dict[str, list[list[float]]] = {
        side: [
            [
                value
                for r, (_, group) in enumerate(members)
                for k in _on_side(group, side)
                if (value := judged.data[p][r][k]) is not None
            ]
            for p, members in enumerate(asked.members)
        ]
        for side in COMPLETION_SIDES
    }
    own = [[value for value in values if value is not None] for values in judged.own]
    means = {
        side: [float(np.mean(values)) for values in by_prompt if values] for side, by_prompt in sides.items()
    }
    return replace(
        found,
        peak=reward_peak(own, sides["all"]),
        reward_agreement=_ordered_alike(asked, judged),
        data_rewards={side: mean_interval(values) for side, values in means.items() if values},
    )


def _ordered_alike(asked: Asked, judged: JudgedData) -> Interval | None:
    """Share of pairs that the reward orders as the data do, ties half; a prompt's pairs are averaged first."""
    right, clusters = [], []
    for p, (better, worse), _ in _pairs(asked, judged.data):
        if better is not None and worse is not None:
            right.append((better > worse) + 0.5 * (better == worse))
            clusters.append(p)
    return mean_interval(cluster_means(right, clusters)) if right else None
