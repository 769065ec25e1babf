"""The closed table of objectives: one line each. A method is a file here, a page in docs/objectives and a test file."""

from preftune.objectives.base import Objective, reduce_losses
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.sft import SFT

OBJECTIVES: dict[str, type[Objective]] = {
    "bnf": BNF,
    "dpo": DPO,
    "sft": SFT,
}

__all__ = ["BNF", "DPO", "OBJECTIVES", "SFT", "Objective", "objective_name", "reduce_losses"]


def objective_name(objective: Objective) -> str:
    """The name under which an objective's class stands in the table."""
    return next(name for name, kind in OBJECTIVES.items() if kind is type(objective))
