"""The win rate of a model's answers against other answers of the same prompts, by a judge or any other reward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from preftune.errors import ConfigError, TrainingError
from preftune.rewards.base import prompt_as_text, whole_prompts
from preftune.rewards.call import AnyReward, ask, check_columns
from preftune.rewards.judge import Judge
from preftune.rewards.questions import prompt_text, prompt_turns, questions, shared_columns
from preftune.rewards.resolve import resolve_reward
from preftune.stats import Interval, cluster_means, length_controlled_share, preferred_share, share_interval
from preftune.types import Record

SAMPLED = ("ended", "num_tokens", "budget")  # columns that only a sampled answer has


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers of each prompt; `ended` and `num_tokens` are empty for those that no model of ours wrote."""

    name: str
    texts: Sequence[Sequence[str]]
    ended: Sequence[Sequence[bool]] = ()
    num_tokens: Sequence[Sequence[int]] = ()
    budget: int = 0


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two answers of one prompt. `share` is 1 for a win of the model, 0.5 for a tie, 0 for a loss, None where the
    judge was not understood; a judge that prefers the same place in both orders gives 0.5.
    """

    prompt_index: int
    sample_index: int
    prompt: str
    completion: str
    opponent: str
    share: float | None
    shown_first: float | None = None  # of a judge: what the model's answer wins where it is shown first
    shown_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """Ties count one half; the answers of a prompt are averaged first, so intervals count prompts.

    `consistency` is the share of comparisons in which a judge gives the same verdict in both orders, and
    `first_place` the share of points that go to the answer that is shown first (0.5 without a position bias).
    """

    num_prompts: int
    judge: str
    opponent: str
    wins: int
    ties: int
    losses: int
    not_understood: int
    win_rate: Interval
    length_controlled: Interval
    characters: tuple[float, float]  # mean length of the model's and of the opponent's answers
    consistency: Interval | None = None
    first_place: float | None = None


def resolve_judge(text: str) -> AnyReward:
    """Any reward; a language model compares pairs of answers, whatever its mode."""
    function = resolve_reward(text)
    if not isinstance(function, Judge) or function.mode == "pairwise":
        judge = function
    else:
        judge = replace(function, mode="pairwise")
    if isinstance(judge, Judge) and judge.against is not None:
        raise ConfigError(
            "against of the judge has no effect here", got=judge.against, do="Use --against COLUMN"
        )
    return judge


def check_judge(judge: AnyReward, text: str, records: Sequence[Record], sampled: bool) -> None:
    """An error, before anything is sampled, if the judge needs columns that the answers will not have."""
    if not isinstance(judge, Judge):
        check_columns(judge, text, shared_columns(records) | {"prompt_turns", *(SAMPLED if sampled else ())})


def compare_sides(
    judge: AnyReward, text: str, records: Sequence[Record], model: Answers, opponent: Answers
) -> list[Duel]:
    """Answer k of the model against answer k of the opponent, or against its only one."""
    flat = [(p, k) for p, ones in enumerate(model.texts) for k in range(len(ones))]
    others = [opponent.texts[p][k if len(opponent.texts[p]) > 1 else 0] for p, k in flat]
    turns = {"prompt_turns": [prompt_turns(record) for record in records]}
    whole = whole_prompts([prompt_text(record) for record in records], turns)
    prompts = [prompt_as_text(prompt) for prompt in whole]
    first: list[float | None]
    second: list[float | None]
    if isinstance(judge, Judge):
        games = [(prompts[p], model.texts[p][k], other) for (p, k), other in zip(flat, others, strict=True)]
        orders = judge.compared(games)
        first, second = [one for one, _ in orders], [two for _, two in orders]
        shares = [None if one is None or two is None else (one + two) / 2 for one, two in orders]
    else:
        first = second = [None] * len(flat)
        against = replace(
            opponent,
            texts=[[others[i] for i, (q, _) in enumerate(flat) if q == p] for p in range(len(records))],
        )
        mine, theirs = (_rewards(judge, text, records, side) for side in (model, against))
        shares = [
            None if a is None or b is None else float(preferred_share([a - b])[0])
            for a, b in zip(mine, theirs, strict=True)
        ]
    return [
        Duel(
            prompt_index=p,
            sample_index=k,
            prompt=prompts[p],
            completion=model.texts[p][k],
            opponent=other,
            share=share,
            shown_first=one,
            shown_second=two,
        )
        for (p, k), other, share, one, two in zip(flat, others, shares, first, second, strict=True)
    ]


def _rewards(judge: AnyReward, text: str, records: Sequence[Record], side: Answers) -> list[float | None]:
    blank = [[False] * len(ones) for ones in side.texts]
    asked = questions(
        records,
        side.texts,
        side.ended or blank,
        side.num_tokens or [[0] * len(ones) for ones in blank],
        side.budget,
    )
    columns = {name: one for name, one in asked.columns.items() if side.ended or name not in SAMPLED}
    return ask(judge, text, asked.prompts, asked.completions, columns).rewards


def win_rate(comparisons: Sequence[Duel], judge: str, opponent: str) -> WinRate:
    """The rate over the comparisons that were understood, with Wilson's interval over prompts."""
    known = [(one, one.share) for one in comparisons if one.share is not None]
    if not known:
        raise TrainingError(
            "The judge gave no verdict",
            got=f"{len(comparisons)} comparisons, none of them understood",
            do="Look at what the judge writes; docs/rewards.md shows the line that its answer must end in",
        )
    prompts = [one.prompt_index for one, _ in known]
    shares = np.array([share for _, share in known])
    lengths = np.array([[len(one.completion), len(one.opponent)] for one, _ in known], dtype=np.float64)
    orders = [
        (one.shown_first, one.shown_second, one.prompt_index)
        for one, _ in known
        if one.shown_first is not None and one.shown_second is not None
    ]
    agree = [float(first == second) for first, second, _ in orders]
    return WinRate(
        num_prompts=len(set(prompts)),
        judge=judge,
        opponent=opponent,
        wins=int((shares > 0.5).sum()),
        ties=int((shares == 0.5).sum()),
        losses=int((shares < 0.5).sum()),
        not_understood=len(comparisons) - len(known),
        win_rate=share_interval(cluster_means(shares, prompts)),
        length_controlled=length_controlled_share(
            cluster_means(shares, prompts), cluster_means(lengths[:, 0] - lengths[:, 1], prompts)
        ),
        characters=(float(lengths[:, 0].mean()), float(lengths[:, 1].mean())),
        consistency=share_interval(cluster_means(agree, [p for *_, p in orders])) if orders else None,
        first_place=float(np.mean([(first + 1 - second) / 2 for first, second, _ in orders]))
        if orders
        else None,
    )
