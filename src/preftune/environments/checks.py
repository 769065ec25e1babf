"""Whether the settings around an environment go together, before anything is loaded."""

from collections.abc import Sequence

from preftune.environments.base import NamedEnvironment, RolloutOptions
from preftune.environments.resolve import ENVIRONMENTS
from preftune.errors import ConfigError, refuse_idle
from preftune.sampling.prefix import PrefixOptions
from preftune.sampling.sample import SampleOptions
from preftune.spec import parse_sum, parse_term
from preftune.types import Record

SUM_REWARD = "environment"
"""The reward that is the sum of what the environment gives."""


def check_environment(rollout: RolloutOptions, sampling: SampleOptions, prefix: PrefixOptions) -> None:
    """Refuse limits that have no effect, and answers that could not be continued."""
    environment = rollout.environment
    if environment is None:
        names = ("max_turns", "total_tokens", "turn_tokens", "step_timeout_s", "parallel", "process")
        refuse_idle(
            rollout,
            "without an environment",
            *names,
            prefix="rollout.",
            do="Add --environment NAME, or leave it out",
        )
        return
    name = parse_term(environment, "environment").name
    if prefix.column:
        raise ConfigError(
            "Rollouts in an environment begin at the prompt",
            got=f"prefix.column {prefix.column}",
            do="Leave it or rollout.environment out",
        )
    if sampling.stop:
        raise ConfigError(
            "sampling.stop has no place in rollouts: a turn can follow only the end-of-turn token of an answer",
            got=sampling.stop,
            do="Leave it out",
        )
    if sampling.max_new_tokens > rollout.total_tokens:
        raise ConfigError(
            "rollout.total_tokens is less than the budget of one answer",
            got=f"{rollout.total_tokens}, and sampling.max_new_tokens {sampling.max_new_tokens}",
            do="Raise --rollout.total_tokens or lower --sampling.max_new_tokens",
        )
    if rollout.process and name in ENVIRONMENTS:
        raise ConfigError(
            "Only an environment of yours can run in a separate process",
            got=environment,
            expected="'module:Class'",
            do="Leave rollout.process out: the environments of preftune keep their own time",
        )


def reward_with(environment: str | None, reward: str | None) -> str | None:
    """The reward of a run: what the environment gives where no other is named."""
    if environment is None:
        if reward is not None and SUM_REWARD in [term.name for term in parse_sum(reward, "reward")]:
            raise ConfigError(
                f"Reward {SUM_REWARD!r} is what an environment gives",
                got="no environment",
                do="Add --environment NAME, or name another reward",
            )
        return reward
    name = parse_term(environment, "environment").name
    if reward is None and name in ENVIRONMENTS:
        raise ConfigError(
            f"Environment {name!r} gives no reward",
            got="no reward",
            expected="a reward that judges the last answer, such as --reward maths",
        )
    return SUM_REWARD if reward is None else reward


def check_tool_columns(named: NamedEnvironment, records: Sequence[Record]) -> None:
    """Refuse prompts that do not name the tools of the environment."""
    without = next((record for record in records if not record.tools), None)
    if named.tools and without is not None:
        names = [tool["function"]["name"] for tool in named.tools]
        raise ConfigError(
            f"Environment {named.name!r} has tools, and {without.origin} does not name them",
            got="no column tools",
            expected=f"descriptions of {', '.join(names)} in the column tools",
            do="Write the prompts with the environment's own rows (docs/environments.md)",
        )
