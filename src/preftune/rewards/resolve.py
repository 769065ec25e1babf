"""From how a reward is written to the function that judges: the closed table of built-ins, and functions from
the user.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from preftune.errors import ConfigError, shown
from preftune.rewards.base import BuiltIn, RewardFunction
from preftune.rewards.call import AnyReward, Part, WeightedRewards
from preftune.spec import SpecTerm, made, parse_spec


class _BuiltIns(Mapping[str, type[BuiltIn]]):
    """Name -> class. The module of a reward is imported when the reward is looked up: the model libraries
    that some rewards need take seconds to import.
    """

    def __init__(self, places: Mapping[str, str]):
        self._places = places

    def __getitem__(self, name: str) -> type[BuiltIn]:
        module, _, kind = self._places[name].partition(":")
        return getattr(importlib.import_module(f"preftune.rewards.{module}"), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


REWARDS: Mapping[str, type[BuiltIn]] = _BuiltIns(
    {
        "brief": "text_rules:Brief",
        "ended": "text_rules:Ended",
        "length.min": "text_rules:LengthMin",
        "length.mode": "text_rules:LengthMode",
        "length.skew": "text_rules:LengthMin",
        "regex": "text_rules:Regex",
        "format": "text_rules:Format",
        "exact": "answers:Exact",
        "maths": "answers:Maths",
        "instructions": "packages:Instructions",
        "sentiment": "packages:Sentiment",
        "model": "classifier:RewardModel",
        "implicit": "implicit:ImplicitReward",
        "judge": "judge:Judge",
    }
)


def resolve_reward(text: str) -> AnyReward:
    """The reward that is written in `text`, ready to judge; every mistake in it that can be seen now is a
    ConfigError now.

    A built-in with its settings, the user's function named as "module:function" or
    "path/to/file.py:function", or a weighted sum of these.
    """
    terms = parse_spec(text)
    parts = tuple(
        Part(weight=1.0 if t.weight is None else t.weight, name=t.name, function=_resolved(t)) for t in terms
    )
    return parts[0].function if terms[0].weight is None else WeightedRewards(parts=parts)


def _resolved(term: SpecTerm) -> RewardFunction:
    name, colon, folder = term.name.partition(":")
    if name == "model" and colon:
        return made(REWARDS["model"], "model", {"path": folder, **term.settings})
    if term.name in REWARDS:
        return made(REWARDS[term.name], term.name, term.settings)
    return _users_function(term.name, bool(term.settings))


def _users_function(name: str, with_settings: bool) -> RewardFunction:
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
    if with_settings:
        raise ConfigError(
            f"Reward {name!r} takes no settings here",
            got="settings in brackets",
            expected="built-in rewards with settings",
            do="Write a function that has them in it",
        )
    module = (
        _load_file(Path(source).expanduser(), name) if source.endswith(".py") else _load_module(source, name)
    )
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
            expected="f(prompts, completions, **columns)",
            do="Add **columns to its parameters",
        ) from None
