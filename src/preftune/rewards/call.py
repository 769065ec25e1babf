"""A reward called: under a time limit where it is the user's, and what it returns is checked."""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

from preftune.errors import ConfigError, PreftuneError, TrainingError, shown
from preftune.rewards.base import COLUMNS, BuiltIn, RewardFunction, Verdicts, at
from preftune.rewards.own_process import OwnProcess
from preftune.text import line_steps
from preftune.time_limit import Overdue, run_apart

TIMEOUT_S = 600.0  # seconds that one call of a user's function may take
MOST_AT_ONCE = 8  # asynchronous terms of a sum that run at the same time
_RESERVED = ("prompts", "completions")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One term of a weighted sum."""

    weight: float
    name: str
    function: RewardFunction
    label: str = ""  # short, and its own among the terms of the sum


@dataclass(frozen=True, kw_only=True)
class WeightedRewards:
    """sum_k weight_k * reward_k over the terms that have an opinion; None where no term has one."""

    parts: tuple[Part, ...]


AnyReward = RewardFunction | WeightedRewards


def _outcome(function: RewardFunction, arguments: Mapping[str, Any], timeout_s: float | None) -> Any:
    if isinstance(function, BuiltIn):
        return function(**arguments)

    if isinstance(function, OwnProcess):
        return function.ask(arguments, timeout_s)

    def work() -> Any:
        result = function(**arguments)
        return asyncio.run(_awaited(result, timeout_s)) if inspect.isawaitable(result) else result

    if timeout_s is None and not is_async(function):
        return work()  # in the caller's thread, where signals work
    return run_apart(work, timeout_s)


def is_async(function: RewardFunction) -> bool:
    """Whether calling the function gives something to wait for."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  an object whose call is asynchronous
    )


async def _awaited(result: Any, seconds: float | None) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await result
    except TimeoutError:
        if limit.expired():
            raise Overdue from None
        raise


def check_columns(function: AnyReward, name: str, columns: Mapping[str, Any] | set[str]) -> None:
    """An error if the reward needs columns that are not among these."""
    if isinstance(function, WeightedRewards):
        for part in function.parts:
            check_columns(part.function, part.name, columns)
    if not isinstance(function, BuiltIn):
        return
    if missing := [column for column in function.needs if column not in columns]:
        wanted = ", ".join(
            f"{column!r} ({COLUMNS.get(column, 'a column of the data')})" for column in missing
        )
        sampled = all(column in COLUMNS for column in missing)
        raise ConfigError(
            f"Reward {name!r} lacks columns",
            got=f"the columns {sorted(columns)}",
            expected=wanted,
            do="Sampling gives these columns; for completions from a file, add them to its rows"
            if sampled
            else "Add the column to the data, or name the one that holds it in the reward's settings",
        )


def ask(
    function: AnyReward,
    name: str,
    prompts: list[str],
    completions: list[str],
    columns: Mapping[str, object],
    timeout_s: float | None = TIMEOUT_S,
) -> Verdicts:
    """The rewards of the completions as finite floats or None; a ConfigError or TrainingError that shows the
    first offender.

    `timeout_s` (seconds; None is no limit) bounds each call of a function that is not ours.
    """
    assert len(prompts) == len(completions)
    for reserved in _RESERVED:
        if reserved in columns:
            raise ConfigError(
                f"A column may not be called {reserved!r}: rewards get {reserved} under that name",
                do="Rename the column",
            )
    check_columns(function, name, columns)
    if isinstance(function, WeightedRewards):
        calls = [
            partial(ask, part.function, part.name, prompts, completions, columns, timeout_s)
            for part in function.parts
        ]
        return _summed(function.parts, _all_of(calls, [is_async(part.function) for part in function.parts]))

    def call(start: int, stop: int) -> object:
        part = slice(start, stop)  # slices are copies: the function may do with them what it likes
        cut = {
            key: value[part] if isinstance(value, list | tuple) and len(value) == len(completions) else value
            for key, value in columns.items()
        }
        return _outcome(
            function, {"prompts": prompts[part], "completions": completions[part], **cut}, timeout_s
        )

    try:
        outcome = call(0, len(completions))
    except PreftuneError:
        raise
    except Overdue:
        raise TrainingError(
            f"Reward {name!r} gave no answer on {len(completions)} completions",
            got=f"nothing within {timeout_s:g} s",
            do="Mend the function, or raise timeout_s",
        ) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        index = _first_raising(call, len(completions), error)
        where = f"on {len(completions)} completions" if index is None else at(index, completions)
        raise TrainingError(
            f"Reward {name!r} raised {shown(error, 200)}, {where}", do="Mend the function"
        ) from error
    return _checked(outcome, name, completions)


def call_reward(
    function: AnyReward,
    name: str,
    prompts: list[str],
    completions: list[str],
    columns: Mapping[str, object],
    timeout_s: float | None = TIMEOUT_S,
) -> list[float | None]:
    """The rewards alone, of `ask`."""
    return ask(function, name, prompts, completions, columns, timeout_s).rewards


def _all_of(calls: Sequence[Callable[[], Verdicts]], apart: Sequence[bool]) -> list[Verdicts]:
    """What the terms of a sum return. Asynchronous functions wait for something else most of the time, so they run
    at the same time, at most MOST_AT_ONCE of them.
    """
    if sum(apart) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(MOST_AT_ONCE, "preftune-rewards") as pool:
        begun = [pool.submit(call) if alone else None for call, alone in zip(calls, apart, strict=True)]
        return [
            call() if waiting is None else waiting.result()
            for call, waiting in zip(calls, begun, strict=True)
        ]


def _summed(parts: Sequence[Part], found: Sequence[Verdicts]) -> Verdicts:
    rewards: list[float | None] = []
    weights = [part.weight for part in parts]
    for ones in zip(*(one.rewards for one in found), strict=True):
        known = [w * reward for w, reward in zip(weights, ones, strict=True) if reward is not None]
        rewards.append(sum(known) if known else None)
    by_name: dict[str, list[float | None]] = {}
    for part, one in zip(parts, found, strict=True):
        name = part.label or part.name
        by_name |= {name: one.rewards} | {f"{name}/{key}": values for key, values in one.parts.items()}
    return Verdicts(
        rewards=rewards,
        steps=_summed_steps(weights, found),
        by_answer=any(one.by_answer for one in found),
        parse_failures=sum(one.parse_failures for one in found),
        parts=by_name,
    )


def _summed_steps(weights: Sequence[float], found: Sequence[Verdicts]) -> list[tuple[float, ...] | None]:
    """The weighted sum over the terms that reward steps; empty where none does."""
    steps = [(weight, one.steps) for weight, one in zip(weights, found, strict=True) if one.steps]
    if not steps:
        return []
    if len({one.by_answer for one in found if one.steps}) > 1:
        raise TrainingError(
            "A sum of rewards has steps of two kinds",
            got="answers of a rollout, and lines of an answer",
            do="Leave one of them out",
        )
    summed: list[tuple[float, ...] | None] = []
    for k in range(len(found[0].rewards)):
        mine = [[weight * value for value in one] for weight, ones in steps if (one := ones[k]) is not None]
        summed.append(tuple(map(sum, zip(*mine, strict=True))) if mine else None)
    return summed


def _checked(outcome: object, name: str, completions: list[str]) -> Verdicts:
    if isinstance(outcome, Verdicts):
        steps = outcome.steps if any(one is not None for one in outcome.steps) else []
        return replace(
            _checked(outcome.rewards, name, completions),
            parse_failures=outcome.parse_failures,
            steps=steps,
            parts=outcome.parts,
            by_answer=outcome.by_answer,
        )
    outcome = _as_list(outcome)
    expected = f"a list of {len(completions)} numbers or None"
    if not isinstance(outcome, list | tuple):
        raise TrainingError(
            f"Reward {name!r} returned no list",
            got=f"a {type(outcome).__name__}",
            expected=expected,
            do="Return a list, or an array or tensor of one dimension",
        )
    if len(outcome) != len(completions):
        without = f", none for {at(len(outcome), completions)}" if len(outcome) < len(completions) else ""
        raise TrainingError(f"Reward {name!r} returned {len(outcome)} entries{without}", expected=expected)
    entries = [_as_list(entry) for entry in outcome]
    steps = [
        _steps(entry, name, index, completions) if isinstance(entry, list | tuple) else None
        for index, entry in enumerate(entries)
    ]
    outcome = [entry if mine is None else sum(mine) for entry, mine in zip(entries, steps, strict=True)]
    rewards = [None if entry is None else _finite(entry) for entry in outcome]
    for index, (reward, entry) in enumerate(zip(rewards, outcome, strict=True)):
        if reward is None and entry is not None:
            raise TrainingError(
                f"Reward {name!r} is not a finite number for {at(index, completions)}",
                got=shown(entry),
                expected="a finite number or None",
            )
    return Verdicts(rewards=rewards, steps=steps if any(one is not None for one in steps) else [])


def _steps(entry: Sequence[Any], name: str, index: int, completions: list[str]) -> tuple[float, ...]:
    """The rewards of a completion's steps, checked."""
    values = [_finite(value) for value in entry]
    count = len(line_steps(completions[index]))
    if None in values or len(values) != count:
        raise TrainingError(
            f"Reward {name!r} does not fit the steps of {at(index, completions)}",
            got=shown(entry),
            expected=f"{count} finite numbers, one for each line that is not blank",
        )
    return tuple(value for value in values if value is not None)


def _as_list(outcome: Any) -> Any:
    """An array or tensor of one dimension as a list; anything else as it is."""
    try:
        return outcome.tolist() if getattr(outcome, "ndim", None) == 1 else outcome
    except KeyboardInterrupt:
        raise
    except BaseException:  # an object that only looks like an array
        return outcome


def _finite(entry: Any) -> float | None:
    """A number of Python, numpy or torch as a float; None if it is no finite number."""
    try:
        if not isinstance(entry, Real) and getattr(entry, "ndim", None) == 0:
            entry = entry.item()  # of an array or a tensor
        number = float(entry) if isinstance(entry, Real) else math.nan
    except KeyboardInterrupt:
        raise
    except BaseException:  # an int beyond the largest float, or an object that only looks like a number
        return None
    return number if math.isfinite(number) else None


def _first_raising(call: Callable[[int, int], object], count: int, error: BaseException) -> int | None:
    """The completion on which the function raises again, found by halving so that a costly function is called
    seldom.

    None when no single completion is to blame.
    """
    if isinstance(error, OSError):  # a network or a disk: asking again would wait for the same time-outs
        return None

    def raises(start: int, stop: int) -> bool:
        try:
            call(start, stop)
        except KeyboardInterrupt:
            raise
        except BaseException as again:
            return type(again) is type(error)
        return False

    good, bad = 0, count  # the first `good` completions pass, the first `bad` raise
    while bad - good > 1:
        middle = (good + bad) // 2
        if raises(0, middle):
            bad = middle
        else:
            good = middle
    return good if bad > good and raises(good, bad) else None
