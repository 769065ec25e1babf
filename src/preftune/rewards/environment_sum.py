"""The reward that an environment gives."""

from dataclasses import dataclass
from typing import Any

from preftune.rewards.base import BuiltIn, Verdicts, each


@dataclass(frozen=True, kw_only=True)
class EnvironmentSum(BuiltIn):
    """What the environment of the run gives a rollout: the sum over its answers. None where it gives nothing.

    Args:
        by_answer: reward each answer of a rollout with its own reward, for objectives that use rewards of steps.
    """

    by_answer: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("environment_reward", "turn_rewards") if self.by_answer else ("environment_reward",)

    @property
    def gives_steps(self) -> bool:
        return self.by_answer

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Verdicts:
        rewards = each(columns["environment_reward"], len(completions))
        if not self.by_answer:
            return Verdicts(rewards=rewards)
        answers = each(columns["turn_rewards"], len(completions))
        steps = [
            None if reward is None else tuple(float(one or 0.0) for one in mine)
            for reward, mine in zip(rewards, answers, strict=True)
        ]
        return Verdicts(rewards=rewards, steps=steps, by_answer=True)
