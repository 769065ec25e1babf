"""Rewards of steps, which speak of a completion's text, at the tokens that end them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from preftune.data.render import Renderer
from preftune.errors import ConfigError, TrainingError
from preftune.objectives import Objective, objective_name
from preftune.rewards import AnyReward, Verdicts
from preftune.rewards.base import BuiltIn
from preftune.rewards.call import WeightedRewards
from preftune.sampling.sampled import completion_text, tokens_within
from preftune.text import line_steps
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class StepUse:
    """What the objective does with rewards of steps."""

    name: str = "the objective"
    uses: bool = False
    wants: bool = False

    @classmethod
    def of(cls, objective: Objective) -> "StepUse":
        return cls(name=objective_name(objective), uses=objective.uses_steps, wants=objective.wants_steps)

    def check_reward(self, reward: AnyReward | None, name: str) -> None:
        """Refuse what is known before a completion is drawn; what a user's function gives is not."""
        parts = [part.function for part in reward.parts] if isinstance(reward, WeightedRewards) else [reward]
        if any(isinstance(part, BuiltIn) and part.gives_steps for part in parts):
            self._refuse_steps(name, ConfigError)
        elif self.wants and all(isinstance(part, BuiltIn) for part in parts):
            raise ConfigError(**self._none(name))

    def check(self, verdicts: Verdicts, name: str) -> None:
        """The same of what a reward gave."""
        if verdicts.steps:
            self._refuse_steps(name, TrainingError)
        elif self.wants and any(reward is not None for reward in verdicts.rewards):
            raise TrainingError(**self._none(name))

    def _refuse_steps(self, name: str, kind: type[ConfigError | TrainingError]) -> None:
        if not self.uses:
            raise kind(
                f"{self.name} has one number for a completion and no use for rewards of its steps",
                got=f"reward {name!r}, which rewards steps",
                expected="grpo, ppo, reinforce, reinforce-plus-plus, or rloo without clip",
                do="Choose another objective, or a reward for whole completions",
            )

    def _none(self, name: str) -> dict[str, str]:
        return {
            "what": f"{self.name} gives tokens the reward of their own step (credit step)",
            "got": f"reward {name!r}, which rewards whole completions",
            "do": "Leave --objective.credit out, or choose a reward of steps",
        }


def with_answer_rewards(group: Group, steps: Sequence[tuple[float, ...] | None]) -> Group:
    """The group with the rewards of a rollout's answers at the last scored token of each."""
    placed = []
    for size, mask, mine in zip(group.num_scored, group.scored, steps, strict=True):
        places = np.full(size, np.nan, dtype=np.float32)
        # behind an answer comes context, or nothing
        ends = np.flatnonzero(mask & ~np.append(mask[1:], False))
        at = np.cumsum(mask)[ends] - 1
        if mine is not None:
            places[at] = mine
        placed.append(places)
    return replace(group, step_rewards=tuple(placed))


def with_step_rewards(
    group: Group, texts: Sequence[str], steps: Sequence[tuple[float, ...] | None], renderer: Renderer
) -> Group:
    """The group with the rewards of its completions' steps at the tokens that end them.

    The last step takes in the end of turn. A step that ended in a beginning which was given is no part of what the
    policy did: its reward is taken off that of the completion.
    """
    if group.scored:
        raise TrainingError(
            "Rewards of steps are of answers that the policy wrote in one go",
            got=f"context within a completion of {group.origin}",
            do="Choose a reward for whole completions",
        )
    placed, rewards = [], list(group.rewards)
    for k, (ids, text, mine) in enumerate(zip(group.completions, texts, steps, strict=True)):
        places = np.full(len(ids), np.nan, dtype=np.float32)
        placed.append(places)
        reward = rewards[k]
        if mine is None or reward is None:
            continue
        given = len(text) - len(completion_text(ids, renderer))  # characters that are no part of these tokens
        ends = list(accumulate(len(step) for step in line_steps(text)))
        for number, (end, value) in enumerate(zip(ends, mine, strict=True)):
            if end <= given:
                rewards[k] = reward = reward - value
                continue
            last = number + 1 == len(mine)
            at = len(ids) - 1 if last else tokens_within(ids, end - given, renderer) - 1
            places[at] = value if np.isnan(places[at]) else places[at] + value
    return replace(group, step_rewards=tuple(placed), rewards=tuple(rewards))
