"""From how an environment is written to the object that answers."""

import importlib
from collections.abc import Mapping
from typing import Any

from preftune.environments.base import NamedEnvironment
from preftune.errors import ConfigError, PreftuneError, shown
from preftune.spec import Bare, build, load_attribute, parse_term, suggestion

ENVIRONMENTS: Mapping[str, str] = {
    "python": "python_tool:PythonTool",
    "self-check": "scripted:SelfCheck",
    "user": "played_user:PlayedUser",
}
"""Name -> module:class of the environments that preftune brings; their steps have no rewards."""
LIBRARY = "verifiers:"


def resolve_environment(text: str) -> NamedEnvironment:
    """The environment that is written in `text`; every mistake in it that can be seen now is a ConfigError."""
    term = parse_term(text, "environment")
    if term.name in ENVIRONMENTS:
        module, _, kind = ENVIRONMENTS[term.name].partition(":")
        found = getattr(importlib.import_module(f"preftune.environments.{module}"), kind)
        made = build(found, term.settings, f"environment {term.name!r}")
        return NamedEnvironment(name=text, environment=made, has_rewards=False)
    if term.name.startswith(LIBRARY):
        from preftune.environments.library import load_library_environment

        made = load_library_environment(term.name.removeprefix(LIBRARY), _plain(term.settings))
        return NamedEnvironment(name=text, environment=made, tools=made.tools)
    if ":" not in term.name:
        raise ConfigError(
            "Unknown environment",
            got=repr(term.name),
            expected=f"one of {', '.join(ENVIRONMENTS)}, 'verifiers:NAME', or 'module:Class'",
            do=suggestion(term.name, ENVIRONMENTS),
        )
    made = _made(term.name, _plain(term.settings))
    return NamedEnvironment(name=text, environment=made, tools=tuple(getattr(made, "tools", ())))


def _made(name: str, settings: Mapping[str, Any]) -> Any:
    """An object of the user's class."""
    kind = load_attribute(name, "environment", "module:Class")
    if not isinstance(kind, type):
        raise ConfigError(f"Environment {name!r} is not a class", got=shown(kind), expected="a class")
    for method in ("reset", "step"):
        if not callable(getattr(kind, method, None)):
            raise ConfigError(
                f"Environment {name!r} has no method {method}",
                expected="reset(row) and step(state, text)",
                do="See docs/environments.md",
            )
    try:
        return kind(**settings)
    except (PreftuneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(
            f"Environment {name!r} cannot be made",
            got=shown(error, 200),
            expected=f"{name}(setting=value, ...)",
        ) from error


def _plain(settings: Mapping[str, object]) -> dict[str, Any]:
    """Settings of a class without annotated types: what is written without quotes is a number or a word."""
    return {key: _value(value) for key, value in settings.items()}


def _value(value: object) -> Any:
    if isinstance(value, list):
        return [_value(one) for one in value]
    if not isinstance(value, Bare):
        return value
    word = value.lower()
    if word in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(word)
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return str(value)
