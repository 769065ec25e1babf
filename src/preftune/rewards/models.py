"""Rewards that a model's weights give: a reward model, and what one causal model prefers beside another."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from preftune.errors import ConfigError
from preftune.rewards.base import BuiltIn, check_range


@dataclass(frozen=True, kw_only=True)
class RewardModel(BuiltIn):
    """The scalar that a sequence-classification model gives to prompt and completion together. The whole dialogue is shown.

    Args:
        path: a folder or a hub id.
        template: how prompt and completion are written: with the tokeniser's chat template, as plain text, or as a pair of
            texts with the tokeniser's separator; "auto" takes the chat template if there is one, else a pair if there is a
            separator.
        ending: what the model reads last: all that the chat template writes after an answer (as model cards do), or nothing
            after the end-of-turn token (as reward models are trained here).
        label: of a model with several labels, by name or number: the reward is its log-probability.
        batch_size: texts computed at a time.
        max_length: most tokens of prompt and completion; a longer text is an error, as it is beyond the model's positions.
        device: "auto" takes a GPU if there is one.
        precision: "fp32" or "bf16".
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights from pickle files when there are no safetensors.
    """

    path: str
    template: Literal["auto", "chat", "plain", "pair"] = "auto"
    ending: Literal["template", "turn"] = "template"
    label: str | None = None
    batch_size: int = 16
    max_length: int | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        check_range("model", "batch_size", self.batch_size, 1)
        check_range("model", "max_length", 1 if self.max_length is None else self.max_length, 1)
        _ = self._classifier  # a model that cannot serve is told now

    @cached_property
    def _classifier(self) -> Any:
        from preftune.rewards.classifier import load_classifier

        return load_classifier(self)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        from preftune.rewards.classifier import classified

        return list(classified(self._classifier, self, prompts, completions, columns))


@dataclass(frozen=True, kw_only=True)
class ImplicitReward(BuiltIn):
    """What a tuned model has come to prefer beside the model that it was tuned from, as DPO's implicit reward.

        reward = beta * log-ratio - length_penalty * |y|,   log-ratio = sum_t (log pi(y_t) - log ref(y_t))

    With length_penalty it is the length-regularised reward of DICE (Chen et al., 2024), per token here; the authors' code
    counts characters. Completions are tokenised anew; one that was cut off (column `ended`) has no end-of-turn token.

    Args:
        policy: the tuned model: a folder or a hub id.
        reference: the model that it was tuned from.
        beta: scale of the log-ratio.
        length: the log-ratio is the "sum" over the completion's tokens or their "mean".
        length_penalty: taken off for each token.
        template: prompts are written with the chat template or as plain text; "auto" takes the template if there is one.
        device: "auto" takes a GPU if there is one.
        precision: "fp32" or "bf16".
        trust_remote_code: run Python code that comes with the models.
        allow_pickle: read weights from pickle files when there are no safetensors.
    """

    policy: str
    reference: str
    beta: float = 0.1
    length: Literal["sum", "mean"] = "sum"
    length_penalty: float = 0.0
    template: Literal["auto", "chat", "plain"] = "auto"
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ConfigError("beta of reward 'implicit' is out of range", got=self.beta, expected="a number above 0")
        check_range("implicit", "length_penalty", self.length_penalty, 0)
        _ = self._models

    @cached_property
    def _models(self) -> Any:
        from preftune.rewards.implicit import load_pair

        return load_pair(self)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        from preftune.rewards.implicit import log_ratios

        rewards: list[float | None] = []
        for ratio, num_tokens in log_ratios(self._models, prompts, completions, columns):
            scale = num_tokens if self.length == "mean" else 1
            rewards.append(self.beta * ratio / scale - self.length_penalty * num_tokens)
        return rewards
