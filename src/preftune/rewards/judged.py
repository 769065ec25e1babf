"""Sampled completions with their rewards, for evaluations before and after training and for labeled data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from preftune.data.render import Renderer
from preftune.rewards import COLUMNS, call_reward, check_columns, resolve_reward
from preftune.rewards.questions import questions, shared_columns
from preftune.sampling.sample import SampleOptions, sample
from preftune.stats import Interval, cluster_means, mean_interval, paired_interval
from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One completion of one prompt and what the reward states about it."""

    prompt_index: int
    sample_index: int
    prompt: str
    completion: str
    reward: float | None
    ended: bool
    num_tokens: int


def sample_and_judge(
    model: PreTrainedModel,
    renderer: Renderer,
    records: Sequence[Record],
    options: SampleOptions,
    reward: str,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """Draw completions of each record's prompt and call the reward once on all of them.

    The reward also gets the columns that sampling gives (COLUMNS), and the records' own columns.
    """
    function = resolve_reward(reward)
    check_columns(function, reward, shared_columns(records) | set(COLUMNS))
    prompts = [renderer.render(record).prompt for record in records]
    drawn = sample(model, renderer, prompts, options, seed, progress)
    texts = [[one.text for one in ones] for ones in drawn]
    ended, counts = (
        [[one.ended for one in ones] for ones in drawn],
        [[one.num_scored for one in ones] for ones in drawn],
    )
    asked = questions(records, texts, ended, counts, options.max_new_tokens)
    rewards = call_reward(function, reward, asked.prompts, asked.completions, asked.columns)
    flat = [(p, k, one) for p, ones in enumerate(drawn) for k, one in enumerate(ones)]
    return [
        Judged(
            prompt_index=p,
            sample_index=k,
            prompt=text,
            completion=one.text,
            reward=value,
            ended=one.ended,
            num_tokens=one.num_scored,
        )
        for (p, k, one), text, value in zip(flat, asked.prompts, rewards, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Reward, length and share of ended completions of one model's samples."""

    reward: Interval
    ended: float
    num_tokens: float


@dataclass(frozen=True, kw_only=True)
class PromptEvaluation:
    """The reference's and the model's samples of the same prompts, and the difference per prompt."""

    num_prompts: int
    reward: str
    before: Stage
    after: Stage
    difference: Interval


def compare_stages(before: list[Judged], after: list[Judged], reward: str) -> PromptEvaluation:
    """Completions that the reward left without a number take no part."""
    known = [
        (b, a) for b, a in zip(before, after, strict=True) if b.reward is not None and a.reward is not None
    ]
    clusters = [b.prompt_index for b, _ in known]
    rewards = [[float(one.reward or 0.0) for one in side] for side in zip(*known, strict=True)] or [[], []]
    return PromptEvaluation(
        num_prompts=len(set(clusters)),
        reward=reward,
        before=_stage(before, rewards[0], clusters),
        after=_stage(after, rewards[1], clusters),
        difference=paired_interval(rewards[0], rewards[1], clusters),
    )


def _stage(judged: list[Judged], rewards: list[float], clusters: list[int]) -> Stage:
    return Stage(
        reward=mean_interval(cluster_means(rewards, clusters)),
        ended=float(np.mean([one.ended for one in judged])),
        num_tokens=float(np.mean([one.num_tokens for one in judged])),
    )
