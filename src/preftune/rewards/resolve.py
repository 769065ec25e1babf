"""From how a reward is written to the function that judges: the closed table of built-ins, and functions from
the user.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, shown
from preftune.rewards.base import BuiltIn, RewardFunction
from preftune.rewards.call import AnyReward, Part, WeightedRewards
from preftune.rewards.own_process import OwnProcess
from preftune.spec import SpecTerm, build, load_attribute, parse_sum, suggestion


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
        "short_answer": "short_answer:ShortAnswer",
        "ended": "text_rules:Ended",
        "length.min": "text_rules:LengthMin",
        "length.mode": "text_rules:LengthMode",
        "length.skew": "text_rules:LengthMin",
        "regex": "text_rules:Regex",
        "format": "text_rules:TaggedFormat",
        "exact": "answers:Exact",
        "maths": "answers:Maths",
        "instructions": "packages:Instructions",
        "sentiment": "packages:Sentiment",
        "model": "classifier:RewardModel",
        "implicit": "implicit:ImplicitReward",
        "likelihood": "implicit:Likelihood",
        "code": "code:Code",
        "process": "process:ProcessReward",
        "progress": "progress:StepProgress",
        "quote": "quote:Quote",
        "judge": "judge:Judge",
        "environment": "environment_sum:EnvironmentSum",
    }
)


def resolve_reward(text: str, own_process: bool = False) -> AnyReward:
    """The reward that is written in `text`, ready to judge; every mistake in it that can be seen now is a
    ConfigError now.

    A built-in with its settings, the user's function named as "module:function" or
    "path/to/file.py:function", or a weighted sum of these. With `own_process` functions of the user run in
    processes of their own, which a time limit can end.
    """
    if not text.strip():
        raise ConfigError("The reward's name is empty", expected="a built-in reward or 'module:function'")
    terms = parse_sum(text, "reward")
    parts = tuple(
        Part(
            weight=1.0 if term.weight is None else term.weight,
            name=term.name,
            function=_resolved(term, own_process),
            label=label,
        )
        for term, label in zip(terms, _labels([term.name for term in terms]), strict=True)
    )
    if own_process and all(isinstance(part.function, BuiltIn) for part in parts):
        raise ConfigError(
            "Only a reward function of yours can run in a separate process",
            got=text,
            expected="'module:function'",
            do="Leave reward_process out: built-in rewards keep their own time",
        )
    return parts[0].function if terms[0].weight is None else WeightedRewards(parts=parts)


def _labels(names: Sequence[str]) -> list[str]:
    """A short name for each term, its own: built-ins by their name, functions by theirs, the second of a name
    with -2.
    """
    short = ["model" if name.startswith("model:") else name.rpartition(":")[2] for name in names]
    seen = [short[:place].count(name) for place, name in enumerate(short)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(short, seen, strict=True)]


def _resolved(term: SpecTerm, own_process: bool) -> RewardFunction:
    name, colon, folder = term.name.partition(":")
    if name == "model" and colon:
        return _built("model", {"path": folder, **term.settings})
    if term.name in REWARDS:
        return _built(term.name, term.settings)
    return _users_function(term.name, bool(term.settings), own_process)


def _built(name: str, settings: Mapping[str, object]) -> RewardFunction:
    return build(REWARDS[name], settings, f"reward {name!r}")


PASSED_OBJECT = "python:"
_PASSED: dict[str, RewardFunction] = {}


def register_reward(function: Any) -> str:
    """A name for a function that was passed as an object; it is known as long as this process runs."""
    _check_signature(function, getattr(function, "__name__", "reward"))
    name = f"{PASSED_OBJECT}{getattr(function, '__qualname__', type(function).__name__)}"
    _PASSED[name] = function
    return name


def _users_function(name: str, with_settings: bool, own_process: bool) -> RewardFunction:
    if name.startswith(PASSED_OBJECT):
        if name not in _PASSED:
            raise ConfigError(
                f"Reward {name!r} was a Python object of another process",
                do="Pass the function again with preftune.train, or name it as module:function",
            )
        if own_process:
            raise ConfigError(
                "reward_process has no effect on a function that was passed as an object",
                got=name,
                expected="'module:function', which another process can import",
            )
        return _PASSED[name]
    if ":" not in name and name.endswith(".py"):
        name = f"{name}:{_only_function(Path(name).expanduser())}"
    if ":" not in name:
        raise ConfigError(
            "Unknown reward",
            got=repr(name),
            expected=f"one of {', '.join(REWARDS)}, or 'module:function'",
            do=suggestion(name, REWARDS),
        )
    if with_settings:
        raise ConfigError(
            f"Reward {name!r} takes no settings here",
            got="settings in brackets",
            expected="built-in rewards with settings",
            do="Write a function that has them in it",
        )
    if own_process:
        return OwnProcess(name)
    function = load_attribute(name, "reward", "module:function")
    _check_signature(function, name)
    return function


def _only_function(path: Path) -> str:
    """The one public function that a file defines."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"Reward {shown(str(path))} cannot be read", got=shown(error, 160)) from error
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    if len(names) != 1:
        raise ConfigError(
            f"Reward {shown(str(path))} names a file, not a function",
            got=", ".join(names) or "no public function in it",
            expected=f"{path}:FUNCTION",
        )
    return names[0]


def _check_signature(function: object, name: str) -> None:
    """Refuse now what would fail only after the first completions were sampled."""
    if not callable(function):
        raise ConfigError(f"Reward {name!r} is not callable", got=function, expected="a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a compiled callable may hide its signature
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
