"""Turns that are known in advance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.environments.base import Turn
from preftune.errors import ConfigError, check_range

QUESTION = (
    "Check your answer step by step. If it is wrong, correct it. Then write your final answer again, in the "
    "same format."
)


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """Asks the model to check its answer, and to answer again: the verification turn of S2R (Ma et al., 2025) and
    of SCoRe (Kumar et al., 2024).

    It has no reward: the reward function scores the last answer.

    Args:
        question: the user's turn after an answer.
        times: how often it is asked.
    """

    question: str = QUESTION
    times: int = 1

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "times")
        if not self.question.strip():
            raise ConfigError("question of environment 'self-check' is empty", expected="a text")

    def reset(self, row: Mapping[str, Any]) -> list[int]:
        return [0]

    def step(self, state: list[int], text: str) -> tuple[Turn, None]:
        state[0] += 1
        return (self.question if state[0] <= self.times else None), None
