"""What a reward function said of rollouts."""

from collections.abc import Sequence
from dataclasses import replace

from preftune.environments.rollout import Columns
from preftune.errors import TrainingError
from preftune.rewards import Verdicts


def judged_rollouts(verdicts: Verdicts, columns: Columns, name: str) -> Verdicts:
    """The verdicts without those on rollouts that failed; `columns` are empty for plain completions."""
    outcomes = columns.get("outcome")
    if outcomes is None:
        return verdicts
    if verdicts.steps and not verdicts.by_answer:
        raise TrainingError(
            "Rewards of steps have no place in rollouts of several turns",
            got=f"reward {name!r}, which rewards steps",
            do='Leave out rollout.environment, or name a reward of whole completions or "environment(by_answer=true)"',
        )
    return without_failures(verdicts, [one == "failed" for ones in outcomes for one in ones])


def without_failures(verdicts: Verdicts, failed: Sequence[bool]) -> Verdicts:
    """No reward for rollouts that failed: what the policy would have done is not known."""

    def cleared(rewards: Sequence[float | None]) -> list[float | None]:
        return [None if lost else reward for reward, lost in zip(rewards, failed, strict=True)]

    steps = [
        None if lost else mine
        for mine, lost in zip(verdicts.steps or [None] * len(failed), failed, strict=True)
    ]
    parts = {name: cleared(values) for name, values in verdicts.parts.items()}
    return replace(
        verdicts, rewards=cleared(verdicts.rewards), parts=parts, steps=steps if verdicts.steps else []
    )
