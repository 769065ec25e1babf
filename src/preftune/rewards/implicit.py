"""Log-ratios of completions under two causal models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import numpy as np

from preftune.data.render import Renderer, make_renderer
from preftune.errors import ConfigError
from preftune.model.layout import LayoutOptions
from preftune.model.load import check_same_tokenizer, load_tokenizer, resolve_model
from preftune.model.policy import Policy, score_all
from preftune.model.scorer import load_scorer
from preftune.rewards.base import at, check_reward_range, whole_prompts
from preftune.rewards.classifier import ended_flags, render, tool_texts
from preftune.rewards.model_reward import ModelReward
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class ImplicitReward(ModelReward):
    """DPO's implicit reward of a tuned model, relative to the model that it was tuned from.

        reward = beta * log-ratio - length_penalty * |y|,   log-ratio = sum_t (log pi(y_t) - log ref(y_t))

    With length_penalty it is the length-regularized reward of DICE (Chen et al., 2024), per token here; the
    authors' code counts characters. Completions are tokenized anew; one that was cut off (column `ended`) has
    no end-of-turn token.

    Args:
        policy: the tuned model: a folder or a hub id.
        reference: the model that it was tuned from.
        beta: scale of the log-ratio.
        length: the log-ratio is the "sum" over the completion's tokens or their "mean".
        length_penalty: taken off for each token.
        template: prompts are written with the chat template or as plain text; "auto" takes the template if
            there is one.
    """

    policy: str
    reference: str
    beta: float = 0.1
    length: Literal["sum", "mean"] = "sum"
    length_penalty: float = 0.0
    template: Literal["auto", "chat", "plain"] = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ConfigError(
                "beta of reward 'implicit' is out of range", got=self.beta, expected="a number above 0"
            )
        check_reward_range("implicit", "length_penalty", self.length_penalty, 0)
        _ = self._models

    @cached_property
    def _models(self) -> Any:
        return load_pair(self)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        rewards: list[float | None] = []
        for ratio, num_tokens in log_ratios(self._models, prompts, completions, columns):
            scale = num_tokens if self.length == "mean" else 1
            rewards.append(self.beta * ratio / scale - self.length_penalty * num_tokens)
        return rewards


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPair:
    policy: Policy
    reference: Policy
    renderer: Renderer


def load_pair(settings: ImplicitReward) -> ModelPair:
    check_same_tokenizer(settings.policy, settings.reference, settings.loading)
    renderer = make_renderer(
        load_tokenizer(resolve_model(settings.policy), settings.loading), settings.template
    )
    policies = [
        load_scorer(name, settings.loading, LayoutOptions(), settings.precision, settings.device)
        for name in (settings.policy, settings.reference)
    ]
    return ModelPair(policy=policies[0], reference=policies[1], renderer=renderer)


@dataclass(frozen=True, kw_only=True)
class Likelihood(ModelReward):
    """Log-probability of a completion under a model, in nats: sum_t log p(y_t), or its mean over the tokens.

    With `--selection best-of-n` it selects the answer that the model finds most probable, as GRAPE does (Zhang et
    al., "The Best Instruction-Tuning Data are Those That Fit", 2025). Completions are tokenized anew; one that was
    cut off (column `ended`) has no end-of-turn token.

    Args:
        model: a folder or a hub id.
        length: the "mean" over the completion's tokens or their "sum".
        template: prompts are written with the chat template or as plain text; "auto" takes the template if
            there is one.
    """

    model: str
    length: Literal["mean", "sum"] = "mean"
    template: Literal["auto", "chat", "plain"] = "auto"

    def __post_init__(self) -> None:
        _ = self._scorer

    @cached_property
    def _scorer(self) -> tuple[Policy, Renderer]:
        renderer = make_renderer(load_tokenizer(resolve_model(self.model), self.loading), self.template)
        return load_scorer(self.model, self.loading, LayoutOptions(), self.precision, self.device), renderer

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        policy, renderer = self._scorer
        groups = _groups_of(renderer, prompts, completions, columns)
        logps = [logp for group in score_all(policy, groups, LayoutOptions()) for logp in group]
        return [
            float(logp.sum(dtype=np.float64)) / (len(logp) if self.length == "mean" else 1) for logp in logps
        ]


def log_ratios(
    pair: ModelPair, prompts: Sequence[str], completions: list[str], columns: Mapping[str, Any]
) -> Iterator[tuple[float, int]]:
    """(log-ratio summed over its tokens, number of tokens) of each completion, in nats."""
    groups = _groups_of(pair.renderer, prompts, completions, columns)
    scores = [
        [scores for group in score_all(policy, groups, LayoutOptions()) for scores in group]
        for policy in (pair.policy, pair.reference)
    ]
    for policy, reference in zip(*scores, strict=True):
        yield float(policy.sum(dtype=np.float64) - reference.sum(dtype=np.float64)), len(policy)


def _groups_of(
    renderer: Renderer, prompts: Sequence[str], completions: list[str], columns: Mapping[str, Any]
) -> list[Group]:
    """The completions as tokens, in their order; neighbors with one prompt are one group."""
    whole, ended = whole_prompts(prompts, columns), ended_flags(columns, len(completions))
    tools = tool_texts(renderer.tokenizer, columns, len(completions))
    groups = []
    for _, places in groupby(
        range(len(prompts)), key=lambda k: (whole[k], tools[k])
    ):  # neighbors share their prompt's computation
        mine = list(places)
        texts, ends = [completions[k] for k in mine], [ended[k] for k in mine]
        first = mine[0]
        groups.append(render(renderer, whole[first], texts, ends, at(first, completions), tools[first]))
    return groups
