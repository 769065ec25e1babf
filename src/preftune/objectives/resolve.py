"""From how an objective is written to its class: a name of the table, or a class of the user's own."""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.objectives.base import Objective
from preftune.objectives.table import OBJECTIVES
from preftune.spec import SpecTerm, build, load_attribute, parse_term, suggestion

_EXAMPLE = "module:Class"
_WRITTEN: dict[type[Objective], str] = {}
"""Classes of the user's, each with the name under which it was found."""


def resolve_objective(name: object) -> type[Objective]:
    """The class of a name such as "dpo", "my_module:MyLoss" or "path/to/file.py:MyLoss"."""
    if not isinstance(name, str) or ":" not in name:
        if isinstance(name, str) and name in OBJECTIVES:
            return OBJECTIVES[name]
        raise ConfigError(
            "There is no such objective",
            got=str(name),
            expected=", ".join(OBJECTIVES) + f", or '{_EXAMPLE}'",
            do=suggestion(str(name), OBJECTIVES),
        )
    kind = load_attribute(name, "objective", _EXAMPLE)
    _check_class(kind, name)
    _WRITTEN[kind] = name
    return kind


def make_objective(text: str) -> Objective:
    """The objective that is written as "dpo", "dpo(beta=0.5)" or "my_module:MyLoss(beta=0.5)"."""
    return make_objective_of(parse_term(text, "objective"))


def make_objective_of(term: SpecTerm) -> Objective:
    """The objective of a name and settings."""
    return build_objective(resolve_objective(term.name), term.name, term.settings)


def build_objective(kind: type[Objective], name: str, settings: object) -> Any:
    """The objective with settings as they were written."""
    return build(kind, settings, f"objective {name!r}")


def objective_name(objective: Objective) -> str:
    """The name that leads back to the class: that of the table, or where the user's class was found."""
    return written_name(type(objective))


def written_name(kind: type[Objective]) -> str:
    """The same of a class."""
    if OBJECTIVES.get(kind.name) is kind:
        return kind.name
    return _WRITTEN.get(kind, f"{kind.__module__}:{kind.__qualname__}")


def source_file(objective: Objective) -> Path | None:
    """The file of a class that is not in the table; None for those in the table and where there is no file."""
    kind = type(objective)
    if OBJECTIVES.get(kind.name) is kind:
        return None
    try:
        return Path(inspect.getfile(kind))
    except (OSError, TypeError):
        return None


def _check_class(kind: object, name: str) -> None:
    """Refuse what cannot be an objective before a model is loaded."""
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ConfigError(
            f"{name} is not an objective",
            got=f"a {type(kind).__name__}" if not isinstance(kind, type) else f"the class {kind.__name__}",
            expected="a subclass of preftune.objectives.Objective, such as PairObjective",
        )
    if inspect.isabstract(kind):
        lacking = ", ".join(sorted(kind.__abstractmethods__))
        raise ConfigError(
            f"The objective {name} is not complete", got=f"no {lacking}", do="Define what is missing"
        )
    if not hasattr(kind, "signal"):
        raise ConfigError(
            f"The objective {name} does not state what it learns from",
            got="no signal",
            expected="signal = Pairs, Labels, Rewards or Hybrid",
        )
    parameters = getattr(kind, "__dataclass_params__", None)
    if not is_dataclass(kind) or "__dataclass_fields__" not in vars(kind) or not parameters.frozen:  # type: ignore
        raise ConfigError(
            f"The objective {name} can be changed after it was made",
            got="no frozen dataclass",
            expected="@dataclass(frozen=True, kw_only=True) above the class",
        )
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"The hyperparameter {field.name} of {name} has no default", do="Give it one")
