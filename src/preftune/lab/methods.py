"""Methods: an objective of the table with how its signal is read off the completions of a prompt."""

from dataclasses import dataclass, fields
from typing import Literal

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES, Objective, resolve_objective
from preftune.types import Hybrid, Labels, Pairs

LabelsFrom = Literal["pairs", "best_worst", "threshold"]
PairsFrom = Literal["all", "best_worst"]
Only = Literal["both", "preferred", "dispreferred"]


def why_excluded(objective: Objective) -> str | None:
    """Why the laboratory does not run an objective; None if it does."""
    if objective.trains != "policy":
        return f"it trains a {objective.trains}, not a policy"
    if objective.signal is Hybrid:
        return "it wants samples that nobody judged beside the pairs"
    if "contrast" in objective.needs:
        return "its token weights come from two further trained models"
    return None


EXCLUDED = {name: reason for name, kind in OBJECTIVES.items() if (reason := why_excluded(kind()))}
"""Objectives of the table that the laboratory does not run, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """An objective and its reading of the data.

    Args:
        objective: with its hyperparameters.
        pairs: of each prompt's completions, all pairs, or best against worst.
        labels: for objectives on singles: of each pair its two sides (a completion counts as often as it
            is in pairs), best and worst, or reward against `threshold`.
        only: which of the labeled completions are kept.
        threshold: of the reward, from which on a completion is labeled +1.
        min_gap: in the place of the problem's.
    """

    objective: Objective
    pairs: PairsFrom = "all"
    labels: LabelsFrom = "pairs"
    only: Only = "both"
    threshold: float = 0.5
    min_gap: float | None = None

    def __post_init__(self) -> None:
        if self.objective.signal not in (Labels,) and self.only != "both":
            raise ConfigError("Only labels can be kept by side", got=self.only, do="Leave out only")


def all_methods() -> dict[str, Method]:
    """Every objective of the table that runs here, with its defaults."""
    return {name: default_method(name) for name in OBJECTIVES if name not in EXCLUDED}


def default_method(name: str) -> Method:
    """An objective with its defaults, and the reading of the data that fits its signal."""
    kind = resolve_objective(name)
    # The divisor of a one-token completion is one token; the default stands for a sampler's budget of them.
    settings = {"max_tokens": 1} if "max_tokens" in {field.name for field in fields(kind)} else {}  # type: ignore[arg-type]
    objective = kind(**settings)
    if reason := why_excluded(objective):
        raise ConfigError(f"The laboratory does not run {name}", got=reason)
    return Method(objective=objective, only="preferred" if objective.imitates else "both")


def pairs_wanted(method: Method) -> bool:
    """Whether the signal is made of pairs: directly, or as the sides that labels are read off."""
    return method.objective.signal is Pairs or (
        method.objective.signal is Labels and method.labels != "threshold"
    )
