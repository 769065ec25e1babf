"""The closed table of objectives: one line each. A method is a file here, a page in docs/objectives and a test file."""

from preftune.objectives.alpha_dpo import AlphaDPO
from preftune.objectives.aot import AOT
from preftune.objectives.apo import APODown, APOZero
from preftune.objectives.base import Coupled, Objective, State, reduce_losses
from preftune.objectives.bco import BCO
from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.beta_dpo import BetaDPO
from preftune.objectives.bnf import BNF
from preftune.objectives.cal_dpo import CalDPO
from preftune.objectives.cpo import CPO
from preftune.objectives.dft import DFT
from preftune.objectives.discopop import DiscoPOP
from preftune.objectives.dpo import DPO
from preftune.objectives.dpop import DPOP
from preftune.objectives.dynamic_ft import DynamicFT
from preftune.objectives.era import ERA
from preftune.objectives.exo import EXO
from preftune.objectives.f_dpo import FDPO
from preftune.objectives.gdpo import GDPO
from preftune.objectives.hinge import Hinge, SLiC
from preftune.objectives.imitation import DIL, GSIL
from preftune.objectives.ipo import IPO
from preftune.objectives.kto import KTO
from preftune.objectives.length import LDDPO, LNDPO, RDPO
from preftune.objectives.nca import NCA, InfoNCA
from preftune.objectives.orpo import ORPO
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.objectives.robust_dpo import RobustDPO
from preftune.objectives.rpo import RPO
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.objectives.simper import SimPER
from preftune.objectives.simpo import AlphaPO, SimPO
from preftune.objectives.sppo import SPPO

OBJECTIVES: dict[str, type[Objective]] = {
    "alpha-dpo": AlphaDPO,
    "alphapo": AlphaPO,
    "aot": AOT,
    "apo-down": APODown,
    "apo-zero": APOZero,
    "bco": BCO,
    "bco-pair": BCOPair,
    "beta-dpo": BetaDPO,
    "bnf": BNF,
    "cal-dpo": CalDPO,
    "cpo": CPO,
    "dft": DFT,
    "dil": DIL,
    "discopop": DiscoPOP,
    "dpo": DPO,
    "dpop": DPOP,
    "dynamic-ft": DynamicFT,
    "era": ERA,
    "exo": EXO,
    "f-dpo": FDPO,
    "gdpo": GDPO,
    "gsil": GSIL,
    "hinge": Hinge,
    "infonca": InfoNCA,
    "ipo": IPO,
    "kto": KTO,
    "ld-dpo": LDDPO,
    "ln-dpo": LNDPO,
    "nca": NCA,
    "orpo": ORPO,
    "r-dpo": RDPO,
    "reward-distillation": RewardDistillation,
    "robust-dpo": RobustDPO,
    "rpo": RPO,
    "rwr": RWR,
    "sft": SFT,
    "simper": SimPER,
    "simpo": SimPO,
    "slic": SLiC,
    "sppo": SPPO,
}

__all__ = ["BNF", "DPO", "OBJECTIVES", "SFT", "Coupled", "Objective", "State", "objective_name", "reduce_losses"]


def objective_name(objective: Objective) -> str:
    """The name under which an objective's class stands in the table."""
    return next(name for name, kind in OBJECTIVES.items() if kind is type(objective))
