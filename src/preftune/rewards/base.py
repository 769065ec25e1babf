"""What every reward has in common: the columns it may ask for, what it may return, and the base of those that
preftune brings.
"""

import importlib.util
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.errors import ConfigError, shown

COLUMNS = {
    "ended": "bool per completion: it closed itself with the end-of-turn token within the budget",
    "num_tokens": "int per completion: the tokens that the model wrote, the end-of-turn token included",
    "budget": "int: the most tokens a completion may have",
    "prompt_turns": "list of {role, content} per completion: the whole prompt, where it is a dialogue; else None",
    "turns": "list of {role, content, weight} per completion, with an environment: its answers and what was said",
    "environment_reward": "number or None per completion, with an environment: the sum of its rewards",
    "turn_rewards": "list of numbers or None per completion, with an environment: one for each answer",
    "training_step": "int, in training: optimizer steps done when the completions were drawn",
}
"""Columns that sampling adds to those of the data."""

PromptInput = str | Sequence[Mapping[str, str]]
"""Plain text, or turns {role, content}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """What a reward said of completions, in numbers. `parse_failures` counts answers of a judge that could
    not be understood; mean and standard deviation (of the population) are over the numbers, None where there
    is none. `parts` are the same of each term of a weighted sum, by its name.
    """

    num_asked: int
    num_none: int
    parse_failures: int
    mean: float | None
    std: float | None
    parts: "Mapping[str, RewardReport]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """One finite number for each completion, or None: no opinion. `parts` are those of each term of a weighted
    sum, before its weight, by the term's name; and an ensemble's disagreement. `steps` are rewards of a
    completion's steps (`line_steps`), a part of its reward; None for a completion without such, and empty where
    none has them. With `by_answer` the steps are the answers of a rollout.
    """

    rewards: list[float | None]
    steps: list[tuple[float, ...] | None] = field(default_factory=list)
    by_answer: bool = False
    parse_failures: int = 0
    parts: Mapping[str, list[float | None]] = field(default_factory=dict)

    def report(self) -> RewardReport:
        known = [reward for reward in self.rewards if reward is not None]
        return RewardReport(
            num_asked=len(self.rewards),
            num_none=len(self.rewards) - len(known),
            parse_failures=self.parse_failures,
            mean=statistics.fmean(known) if known else None,
            std=statistics.pstdev(known) if known else None,
            parts={name: Verdicts(rewards=rewards).report() for name, rewards in self.parts.items()},
        )


class BuiltIn(ABC):
    """A reward of our own: a frozen dataclass whose fields are its settings, checked when it is made. It
    keeps its own time.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which it cannot judge."""
        return ()

    @property
    def gives_steps(self) -> bool:
        """Whether it rewards the steps of a completion."""
        return False

    @abstractmethod
    def __call__(
        self, prompts: list[str], completions: list[str], **columns: Any
    ) -> list[float | None] | Verdicts: ...


RewardFunction = Callable[..., Any]
"""f(prompts, completions, **columns) -> list[float | list[float] | None], plain or async, called with keywords.
A column is a list with one entry per completion, or one value for all of them. A list of numbers rewards the
steps of a completion, whose lines these are; their sum is its reward.
"""


def at(index: int, completions: Sequence[str]) -> str:
    """A completion, for a message."""
    return f"completion {index}, {shown(completions[index])}"


def each(value: Any, count: int) -> list[Any]:
    """One entry per completion of a column that may be one value for all."""
    return list(value) if isinstance(value, list | tuple) and len(value) == count else [value] * count


def checked_budgets(name: str, value: Any, count: int) -> list[int]:
    """The token budget of each completion, for the reward `name`."""
    budgets = each(value, count)
    if wrong := [budget for budget in budgets if type(budget) is not int or budget < 1]:
        raise ConfigError(
            f"The budget of reward {name!r} is not usable", got=wrong[0], expected="a whole number above 0"
        )
    return budgets


def whole_prompts(prompts: Sequence[str], columns: Mapping[str, Any]) -> list[PromptInput]:
    """The prompts with the turns before the last, where the column `prompt_turns` has them."""
    turns = each(columns.get("prompt_turns"), len(prompts))
    return [mine or prompt for prompt, mine in zip(prompts, turns, strict=True)]


def prompt_as_text(prompt: PromptInput) -> str:
    """A prompt for a reader of text; a dialogue with the names of its roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)


def need_package(reward: str, module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"Reward {reward!r} needs the package {package}",
            got="it is not installed",
            do="Install it with: pip install 'preftune[rewards]'",
        )


def check_reward_range(
    reward: str, name: str, value: float | int, low: float | int, high: float | int = float("inf")
) -> None:
    if not low <= value <= high or value == float("inf"):
        expected = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
        raise ConfigError(f"{name} of reward {reward!r} is out of range", got=value, expected=expected)
