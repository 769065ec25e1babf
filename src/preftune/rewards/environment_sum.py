"""The reward that an environment gives."""

from dataclasses import dataclass
from typing import Any

from preftune.rewards.base import BuiltIn, each


@dataclass(frozen=True, kw_only=True)
class EnvironmentSum(BuiltIn):
    """What the environment of the run gives a rollout: the sum over its answers. None where it gives nothing."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("environment_reward",)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return each(columns["environment_reward"], len(completions))
