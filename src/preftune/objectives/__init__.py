"""Losses of methods: pure functions of log-probabilities and a signal, with the facts that are true of them."""

from preftune.objectives.base import ChosenFall, Coupled, Objective, State, reduce_losses
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.kinds import (
    CompletionObjective,
    GroupObjective,
    LabelObjective,
    PairObjective,
    RewardObjective,
    TokenObjective,
)
from preftune.objectives.resolve import (
    build_objective,
    make_objective,
    objective_name,
    resolve_objective,
    source_file,
    written_name,
)
from preftune.objectives.sft import SFT
from preftune.objectives.table import OBJECTIVES

__all__ = [
    "BNF",
    "DPO",
    "OBJECTIVES",
    "SFT",
    "ChosenFall",
    "CompletionObjective",
    "Coupled",
    "GroupObjective",
    "LabelObjective",
    "Objective",
    "PairObjective",
    "RewardObjective",
    "State",
    "TokenObjective",
    "build_objective",
    "make_objective",
    "objective_name",
    "reduce_losses",
    "resolve_objective",
    "source_file",
    "written_name",
]
