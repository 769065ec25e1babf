"""What an environment is, and what it may return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from preftune.data.turn_extras import turn_extras
from preftune.errors import DataError, check_range, shown
from preftune.types import Message

ROLES_OF_TURNS = ("user", "tool")

Turn = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
"""A user's turn as text; a turn {role, content} of a user or a tool, or a list of them; None: the rollout is
over.
"""


@runtime_checkable
class Environment(Protocol):
    """What answers a model between its turns.

    One object serves all rollouts of a run, several at the same time: what belongs to one rollout is in its
    state. `tools` (function descriptions in the format of OpenAI) and `finish` are optional.
    """

    def reset(self, row: Mapping[str, Any]) -> Any:
        """The state of a new rollout. `row` holds the columns of the prompt's row, `prompt` as text or turns
        {role, content}, and `seed`, a number for what the environment draws.
        """
        ...

    def step(self, state: Any, text: str) -> tuple[Turn, float | None]:
        """(what is said to the model's answer, the reward of this answer); the state may be changed in place.

        The reward of a rollout is the sum over its answers; None adds nothing, and a rollout with None alone
        has no reward. It is called for every answer, also for one that a budget cuts off or that is the last
        allowed one: then only the reward counts.
        """
        ...


class EnvironmentFault(Exception):
    """Why a rollout cannot continue, as a phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an environment said to an answer: no turns end the rollout."""

    turns: tuple[Message, ...]
    reward: float | None


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Rollouts in an environment, and their limits; `sampling.max_new_tokens` is the limit of one answer.

    Args:
        environment: what answers the model between its turns: python, self-check, user, verifiers:NAME or
            module:Class.
        max_turns: answers of the model in a rollout.
        total_tokens: tokens of a completion, answers and environment turns together.
        turn_tokens: tokens of one environment turn; a longer turn is cut.
        step_timeout_s: seconds that one call of the environment may take.
        parallel: rollouts whose environment works at the same time, in threads; 1 for an environment that is
            not thread-safe.
        process: run an environment of yours in separate processes, which the time limit kills; a thread, in
            which it runs otherwise, cannot be stopped. Its states must be picklable.
    """

    environment: str | None = None
    max_turns: int = 4
    total_tokens: int = 512
    turn_tokens: int = 256
    step_timeout_s: float = 60.0
    parallel: int = 4
    process: bool = False

    def __post_init__(self) -> None:
        check_range(
            self, "[1, inf)", "max_turns", "total_tokens", "turn_tokens", "parallel", prefix="rollout."
        )
        check_range(self, "(0, inf)", "step_timeout_s", prefix="rollout.")


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedEnvironment:
    """An environment, how it was written, and whether preftune brings it."""

    name: str
    environment: Environment
    has_rewards: bool = True  # whether its steps have rewards
    tools: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def checked_reply(answer: Any) -> Reply:
    """What `step` returned, as turns and a finite reward or None; an EnvironmentFault for anything else."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise EnvironmentFault(f"step returned {shown(answer)} instead of (turn, reward)")
    said, reward = answer
    if hasattr(reward, "item") and getattr(reward, "ndim", None) == 0:
        reward = reward.item()
    if reward is not None:
        if not isinstance(reward, int | float) or not -float("inf") < reward < float("inf"):
            raise EnvironmentFault(f"the reward {shown(reward)} is not a finite number or None")
        reward = float(reward)
    if said is None:
        return Reply(turns=(), reward=reward)
    turns = [said] if isinstance(said, str | Mapping) else said
    if not isinstance(turns, list | tuple) or not turns:
        raise EnvironmentFault(f"the turn {shown(said)} is not a text, a turn, or a list of turns")
    return Reply(turns=tuple(map(_message, turns)), reward=reward)


def _message(turn: Any) -> Message:
    if isinstance(turn, str):
        turn = {"role": "user", "content": turn}
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES_OF_TURNS:
        raise EnvironmentFault(f"the turn {shown(turn)} has not the role user or tool")
    content = turn.get("content")
    if not isinstance(content, str):
        raise EnvironmentFault(f"the content of the turn is {shown(content)} instead of text")
    named = {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    try:
        return Message(role=turn["role"], content=utf8(content), extras=turn_extras(named, "turn"))
    except DataError as error:
        raise EnvironmentFault(str(error)) from error


def utf8(text: str) -> str:
    """The text without halves of surrogate pairs, which cannot be written."""
    return text.encode("utf-8", "replace").decode("utf-8")
