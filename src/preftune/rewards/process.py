"""A process reward model: a number for each step of an answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from preftune.errors import ConfigError
from preftune.rewards.base import Verdicts, check_reward_range, each
from preftune.rewards.classifier import RewardModel, classified, load_classifier
from preftune.rewards.model_reward import ModelReward
from preftune.text import line_steps

_NAME = "process"


@dataclass(frozen=True, kw_only=True)
class ProcessReward(ModelReward):
    """The score of each step of an answer by a model that was trained on labels of steps; the steps are the lines.

        p_k = sigma(v_k), or v_k with raw,   v_k = the model's score of the prompt and the answer up to line k

    One number for an answer is the smallest p_k (Math-Shepherd), their product (Lightman et al., "Let's Verify Step
    by Step"), their mean or the last. "steps" rewards each step with p_k, and "gains" with p_k - p_(k-1), the first
    step with p_1; objectives that use rewards of steps learn from these.

    Args:
        path: the model: the final/ folder of `preftune train-reward-model --process true`, or a hub id.
        give: "min", "product", "mean", "last", "steps" or "gains".
        raw: the numbers are v_k: for a model that was trained with --step_loss squared.
        template: how prompt and answer are written, as of reward `model`.
        batch_size: texts computed at a time.
        max_length: most tokens of prompt and answer.
    """

    path: str
    give: Literal["min", "product", "mean", "last", "steps", "gains"] = "min"
    raw: bool = False
    template: Literal["auto", "chat", "plain"] = "auto"
    batch_size: int = 16
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_reward_range(_NAME, "batch_size", self.batch_size, 1)
        check_reward_range(_NAME, "max_length", 1 if self.max_length is None else self.max_length, 1)
        if self.raw and self.give == "product":
            raise ConfigError(
                "A product is of probabilities", got="give=product with raw=true", do="Choose another of give"
            )
        if self._classifier.model.config.num_labels != 1:
            raise ConfigError(
                "A process reward model has one output", got=self.path, expected="a model with one output"
            )

    @property
    def gives_steps(self) -> bool:
        return self.give in ("steps", "gains")

    @cached_property
    def _reader(self) -> RewardModel:
        return RewardModel(
            path=self.path,
            template=self.template,
            ending="turn",
            batch_size=self.batch_size,
            max_length=self.max_length,
            device=self.device,
            precision=self.precision,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    @cached_property
    def _classifier(self) -> Any:
        return load_classifier(self._reader)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Verdicts:
        steps = [line_steps(text) for text in completions]
        owners = [k for k, ones in enumerate(steps) for _ in ones]
        texts = [text.rstrip("\n") for ones in steps for text in accumulate(ones)]
        count = len(completions)
        more: Mapping[str, Any] = {
            name: [each(columns[name], count)[k] for k in owners]
            for name in ("prompt_turns", "tools")
            if name in columns
        }
        # A beginning has no end of turn, as in training.
        ended = {"ended": [False] * len(texts)}
        asked = [prompts[k] for k in owners]
        scores = iter(
            classified(self._classifier, self._reader, asked, texts, {**more, **ended})[:, 0].tolist()
            if texts
            else []
        )
        values = [[self._value(next(scores)) for _ in ones] for ones in steps]
        if not self.gives_steps:
            return Verdicts(rewards=[_aggregate(mine, self.give) if mine else None for mine in values])
        given: list[tuple[float, ...] | None] = [self._steps(mine) if mine else None for mine in values]
        return Verdicts(rewards=[None if one is None else math.fsum(one) for one in given], steps=given)

    def _value(self, score: float) -> float:
        return score if self.raw else 1 / (1 + math.exp(-score)) if score > -500 else 0.0

    def _steps(self, values: Sequence[float]) -> tuple[float, ...]:
        before = [0.0, *values[:-1]] if self.give == "gains" else [0.0] * len(values)
        return tuple(value - earlier for value, earlier in zip(values, before, strict=True))


def _aggregate(values: Sequence[float], how: str) -> float:
    if how == "min":
        return min(values)
    if how == "product":
        return math.prod(values)
    return values[-1] if how == "last" else math.fsum(values) / len(values)
