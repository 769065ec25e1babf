"""Settings of `preftune train` to try when a run with an objective goes wrong, from the facts of the objective."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from preftune.errors import ConfigError
from preftune.objectives.base import ChosenFall, Objective
from preftune.objectives.checks import choices_of
from preftune.objectives.cpo import CPO
from preftune.objectives.dpop import DPOP
from preftune.objectives.length import LNDPO, RDPO
from preftune.objectives.rpo import RPO
from preftune.objectives.simpo import CPOSimPO, SimPO
from preftune.objectives.table import OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """What health needs to know of an objective. Each remedy is a setting as it is typed, or empty if there is
    none.

    Args:
        chosen_fall: the fact of the objective.
        against_fall: makes the loss hold the chosen completion up.
        against_overlap: makes the loss hold up what the two completions of a pair have in common.
        against_length: makes the loss independent of the length, or a longer answer less attractive.
    """

    chosen_fall: ChosenFall
    against_fall: str
    against_overlap: str
    against_length: str


def remedies(objective: Objective) -> Remedies:
    """Objectives that are advised read a reference only if the present objective does."""
    anchored, name = "ref_logp" in objective.needs, objective.name
    fall = _first(name, (RPO, DPOP) if anchored else (CPOSimPO,) if objective.length_normalized else (CPO,))
    length = _own_length_setting(objective)
    if not length and objective.length_normalized:
        length = _first(name, (RDPO,))
    elif not length:
        length = _first(name, (LNDPO,) if anchored else (SimPO,))
    return Remedies(
        chosen_fall=objective.chosen_fall,
        against_fall=_more_likelihood(objective) or fall,
        against_overlap=_first(name, (DPOP,)) or fall,
        against_length=length,
    )


def facts_of_settings(settings: Mapping[object, object]) -> dict[str, str]:
    """The same from the name and hyperparameters that a run's config.yaml holds; empty if the objective cannot
    be made from them.
    """
    values = {str(key): value for key, value in settings.items()}
    kind = OBJECTIVES.get(str(values.pop("name", None)))
    try:
        return {} if kind is None else asdict(remedies(kind(**values)))
    except (TypeError, ConfigError):
        return {}


def _first(name: str, kinds: tuple[type[Objective], ...]) -> str:
    """The first that is not the present objective."""
    return next((f"--objective {kind.name}" for kind in kinds if kind.name != name), "")


def _more_likelihood(objective: Any) -> str:
    """Twice the weight of the likelihood of the chosen completion, where the objective has one."""
    weight = getattr(objective, "nll_weight", 0.0)
    return f"--objective.nll_weight {2 * weight:g}" if weight else ""


def _own_length_setting(objective: Any) -> str:
    """The choice of the objective's own that makes its loss independent of the length."""
    if objective.length_normalized:
        return ""
    hints = get_type_hints(type(objective))
    for field in fields(objective):
        for choice in choices_of(hints[field.name]):
            try:
                other = replace(objective, **{field.name: choice})
            except ConfigError:
                continue
            if other.length_normalized and other.signal is objective.signal:
                return f"--objective.{field.name} {choice}"
    return ""
