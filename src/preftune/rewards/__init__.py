"""Reward functions: the closed table of built-ins, functions from the user, weighted sums, and the check of
what they return.

A reward function is `f(prompts, completions, **columns) -> list[float | None]`, plain or async, called with
keywords; None means "no opinion". A column is a list with one entry per completion, or one value for all of
them.
"""

from preftune.rewards.base import COLUMNS, BuiltIn, RewardFunction, RewardReport, Verdicts
from preftune.rewards.call import TIMEOUT_S, AnyReward, WeightedRewards, ask, call_reward, check_columns
from preftune.rewards.resolve import REWARDS, resolve_reward

__all__ = [
    "COLUMNS",
    "REWARDS",
    "TIMEOUT_S",
    "AnyReward",
    "BuiltIn",
    "RewardFunction",
    "RewardReport",
    "Verdicts",
    "WeightedRewards",
    "ask",
    "call_reward",
    "check_columns",
    "resolve_reward",
]
