"""Reward functions: the closed table of built-ins, functions from the user, and the check of what they return.

A reward function is `f(prompts, completions, **columns) -> list[float | None]`, called with keywords; None means "no
opinion". A column is a list with one entry per completion, or one value for all of them.
"""

import difflib
import importlib
import importlib.util
import inspect
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from preftune.errors import ConfigError, PreftuneError, TrainingError, shown

RewardFunction = Callable[..., list[float | None]]

COLUMNS = {
    "ended": "bool per completion: it closed itself with the end-of-turn token within the budget",
    "num_tokens": "int per completion: its tokens, the end-of-turn token included",
    "budget": "int: the most tokens a completion may have",
}
PUNCTUATION = string.punctuation + "“”‘’«»…–—¿¡"
SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]}*_`]*$")


def brief(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """A complete answer that ends properly; among those, short beats long.

        reward = 1 - 0.5 * num_tokens / budget, in [0.5, 1), for a complete answer; 0 otherwise

    The gap between 0 and 0.5 makes the longest complete answer better than any broken one. An answer is not complete
    when one of these holds:

    - cut off: it did not end within the budget;
    - no sentence: fewer than 4 words, or the text does not close with . ! ? or … (quotes and brackets may follow);
    - repetitive: some run of 4 words occurs 3 times or more, or fewer than 40% of its more than 20 words are distinct;
    - echo: it has no more words than the prompt, and at least 80% of them are words of the prompt.

    Words are split at spaces and compared without case and surrounding punctuation, so the rules fit languages that
    write spaces. The rules look at form only: a short answer that is false or evasive scores well, and a short right
    answer made of the prompt's words ("Is a whale a fish or a mammal?" "A whale is a mammal.") scores 0.
    Needs the columns `ended`, `num_tokens` and `budget`.
    """
    closed, num_tokens, budget = _needed("brief", columns, "ended", "num_tokens", "budget")
    if not isinstance(budget, int) or budget < 1:
        raise ConfigError("The budget of reward 'brief' is not usable", got=budget, expected="a whole number above 0")
    rewards: list[float | None] = []
    for prompt, completion, end, length in zip(prompts, completions, closed, num_tokens, strict=True):
        complete = end and length <= budget and is_sentence(completion)
        useful = complete and not is_repetitive(completion) and not is_echo(prompt, completion)
        rewards.append(1 - 0.5 * length / budget if useful else 0.0)
    return rewards


def ended(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """1 for a completion that closed itself within the budget, else 0. Needs the column `ended`."""
    (closed,) = _needed("ended", columns, "ended")
    return [1.0 if entry else 0.0 for entry in closed]


def length_min(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """Minus the number of tokens: the shortest completion is the best. Needs the column `num_tokens`."""
    (num_tokens,) = _needed("length.min", columns, "num_tokens")
    return [-float(length) for length in num_tokens]


REWARDS: Mapping[str, RewardFunction] = {
    "brief": brief,
    "ended": ended,
    "length.min": length_min,
}


def is_sentence(text: str) -> bool:
    """At least 4 words, closed by sentence punctuation."""
    return len(_words(text)) >= 4 and SENTENCE_END.search(text.rstrip()) is not None


def is_repetitive(text: str) -> bool:
    """Some run of 4 words occurs 3 times or more, or fewer than 40% of more than 20 words are distinct."""
    words = _words(text)
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(runs.values(), default=0) >= 3 or (len(words) > 20 and len(set(words)) < 0.4 * len(words))


def is_echo(prompt: str, completion: str) -> bool:
    """No longer than the prompt in words, and at least 80% of the words are words of the prompt."""
    asked, words = _words(prompt), _words(completion)
    known = set(asked)
    return len(words) <= len(asked) and sum(word in known for word in words) >= 0.8 * len(words)


def _words(text: str) -> list[str]:
    stripped = (piece.strip(PUNCTUATION) for piece in text.casefold().split())
    return [word for word in stripped if word]


def _needed(reward: str, columns: Mapping[str, Any], *names: str) -> list[Any]:
    missing = [name for name in names if name not in columns]
    if missing:
        wanted = ", ".join(f"{name!r} ({COLUMNS[name]})" for name in missing)
        raise ConfigError(
            f"Reward {reward!r} lacks columns",
            got=f"the columns {sorted(columns)}",
            expected=wanted,
            do="Sampling gives these columns; for completions from a file, add them to its rows",
        )
    return [columns[name] for name in names]


def resolve_reward(name: str) -> RewardFunction:
    """The built-in called `name`, or the user's function named as "module:function" or "path/to/file.py:function"."""
    if name in REWARDS:
        return REWARDS[name]
    source, colon, attribute = name.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name, REWARDS, n=1)
        raise ConfigError(
            "Unknown reward",
            got=repr(name),
            expected=f"one of {', '.join(REWARDS)}, or 'module:function'",
            do=f"Perhaps you meant {near[0]!r}" if near else None,
        )
    if not source or not attribute:
        raise ConfigError("A reward's name is not complete", got=repr(name), expected="'module:function'")
    module = _load_file(Path(source).expanduser(), name) if source.endswith(".py") else _load_module(source, name)
    try:
        function = getattr(module, attribute)
    except AttributeError:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        raise ConfigError(
            f"Reward {name!r} cannot be found: {source!r} has no attribute {attribute!r}",
            do=f"Perhaps you meant {near[0]!r}" if near else None,
        ) from None
    _check_signature(function, name)
    return function


def _load_module(source: str, name: str) -> ModuleType:
    found = all(part.isidentifier() for part in source.split("."))
    try:
        if found:
            return importlib.import_module(source)
    except ModuleNotFoundError as error:
        # A module that exists may itself import one that does not: that is another mistake, told below.
        if not f"{source}.".startswith(f"{error.name}."):
            raise _import_raised(name, source, error) from error
    except (Exception, SystemExit) as error:
        raise _import_raised(name, source, error) from error
    raise ConfigError(
        f"Reward {name!r} cannot be found: there is no module {source!r}",
        do="Install the module, or give the path of its file: 'path/to/file.py:function'",
    )


def _load_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"Reward {name!r} cannot be found: there is no file {shown(str(path))}")
    module_name = f"preftune_reward_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # holds for any path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _import_raised(name, str(path), error) from error
    return module


def _import_raised(name: str, source: str, error: BaseException) -> ConfigError:
    return ConfigError(f"Reward {name!r} cannot be used: importing {source!r} raised {shown(error, 200)}")


def _check_signature(function: object, name: str) -> None:
    """Refuse now what would fail only after the first completions were sampled."""
    if not callable(function):
        raise ConfigError(f"Reward {name!r} is not callable", got=function, expected="a function")
    expected = "f(prompts, completions, **columns)"
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"Reward {name!r} is an async function", expected=f"a plain {expected}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a compiled callable may not tell its signature
        return
    try:
        signature.bind_partial(prompts=[], completions=[], any_other_column=[])
    except TypeError:
        raise ConfigError(
            f"Reward {name!r} does not take every column",
            got=f"the signature {signature}",
            expected=expected,
            do="Add **columns to its parameters",
        ) from None


def call_reward(
    function: RewardFunction,
    name: str,
    prompts: list[str],
    completions: list[str],
    columns: Mapping[str, object],
) -> list[float | None]:
    """The rewards of the completions as finite floats or None, or a TrainingError that shows the first offender."""
    assert len(prompts) == len(completions)
    for reserved in ("prompts", "completions"):
        if reserved in columns:
            raise ConfigError(
                f"A column may not be called {reserved!r}: rewards get {reserved} under that name",
                do="Rename the column",
            )

    def call(start: int, stop: int) -> object:
        part = slice(start, stop)  # slices are copies: the function may do with them what it likes
        cut = {
            key: value[part] if isinstance(value, list | tuple) and len(value) == len(completions) else value
            for key, value in columns.items()
        }
        return function(prompts=prompts[part], completions=completions[part], **cut)

    try:
        outcome = call(0, len(completions))
    except PreftuneError:
        raise
    except Exception as error:
        index = _first_raising(call, len(completions), error)
        where = f"on {len(completions)} completions" if index is None else _at(index, completions)
        raise TrainingError(f"Reward {name!r} raised {shown(error, 200)}, {where}", do="Mend the function") from error
    return _checked(outcome, name, completions)


def _checked(outcome: object, name: str, completions: list[str]) -> list[float | None]:
    expected = f"a list of {len(completions)} numbers or None"
    if not isinstance(outcome, list | tuple):
        raise TrainingError(
            f"Reward {name!r} returned no list",
            got=f"a {type(outcome).__name__}",
            expected=expected,
            do="Return a list; arrays and tensors have .tolist()",
        )
    if len(outcome) != len(completions):
        without = f", none for {_at(len(outcome), completions)}" if len(outcome) < len(completions) else ""
        raise TrainingError(f"Reward {name!r} returned {len(outcome)} entries{without}", expected=expected)
    rewards = [None if entry is None else _finite(entry) for entry in outcome]
    for index, (reward, entry) in enumerate(zip(rewards, outcome, strict=True)):
        if reward is None and entry is not None:
            raise TrainingError(
                f"Reward {name!r} is not a finite number for {_at(index, completions)}",
                got=shown(entry),
                expected="a finite number or None",
            )
    return rewards


def _finite(entry: object) -> float | None:
    try:
        number = float(entry) if isinstance(entry, Real) else math.nan
    except OverflowError:  # an int beyond the largest float
        return None
    return number if math.isfinite(number) else None


def _first_raising(call: Callable[[int, int], object], count: int, error: Exception) -> int | None:
    """The completion on which the function raises again, found by halving so that a costly function is called seldom.

    None when no single completion is to blame.
    """
    if isinstance(error, OSError):  # a network or a disk: asking again would wait for the same time-outs
        return None

    def raises(start: int, stop: int) -> bool:
        try:
            call(start, stop)
        except Exception as again:
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


def _at(index: int, completions: list[str]) -> str:
    return f"completion {index}, {shown(completions[index])}"
