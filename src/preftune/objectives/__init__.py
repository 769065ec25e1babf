"""The closed table of objectives: one line each. A method is a file here, a page in docs/objectives and a test file."""

from preftune.objectives.apo import APODown, APOZero
from preftune.objectives.base import Coupled, Objective, State, reduce_losses
from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.bnf import BNF
from preftune.objectives.bpo import BPO
from preftune.objectives.cal_dpo import CalDPO
from preftune.objectives.cpo import CPO
from preftune.objectives.discopop import DiscoPOP
from preftune.objectives.dpo import DPO
from preftune.objectives.dpop import DPOP
from preftune.objectives.era import ERA
from preftune.objectives.exo import EXO, EXOGroup
from preftune.objectives.f_dpo import FDPO
from preftune.objectives.gdpo import GDPO
from preftune.objectives.group_regression import AGRO, GVPO, CoPG
from preftune.objectives.hinge import Hinge, SLiC
from preftune.objectives.hypo import HyPO
from preftune.objectives.imitation import DIL, GSIL
from preftune.objectives.inpo import INPO
from preftune.objectives.ipo import IPO
from preftune.objectives.length import LDDPO, LNDPO, RDPO
from preftune.objectives.nash_md import NashMD
from preftune.objectives.nca import NCA, InfoNCA
from preftune.objectives.orpo import ORPO
from preftune.objectives.rebel import REBEL
from preftune.objectives.reward_aware_rpo import RewardAwareRPO
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.objectives.robust_dpo import RobustDPO
from preftune.objectives.rpo import RPO
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.objectives.simper import SimPER
from preftune.objectives.simpo import AlphaPO, SimPO
from preftune.objectives.spo import SPO
from preftune.objectives.sppo import SPPO
from preftune.objectives.xpo import XPO

OBJECTIVES: dict[str, type[Objective]] = {
    "agro": AGRO,
    "alphapo": AlphaPO,
    "apo-down": APODown,
    "apo-zero": APOZero,
    "bco-pair": BCOPair,
    "bnf": BNF,
    "bpo": BPO,
    "cal-dpo": CalDPO,
    "copg": CoPG,
    "cpo": CPO,
    "dil": DIL,
    "discopop": DiscoPOP,
    "dpo": DPO,
    "dpop": DPOP,
    "era": ERA,
    "exo": EXO,
    "exo-group": EXOGroup,
    "f-dpo": FDPO,
    "gdpo": GDPO,
    "gsil": GSIL,
    "gvpo": GVPO,
    "hinge": Hinge,
    "hypo": HyPO,
    "infonca": InfoNCA,
    "inpo": INPO,
    "ipo": IPO,
    "ld-dpo": LDDPO,
    "ln-dpo": LNDPO,
    "nash-md": NashMD,
    "nca": NCA,
    "orpo": ORPO,
    "r-dpo": RDPO,
    "rebel": REBEL,
    "reward-aware-rpo": RewardAwareRPO,
    "reward-distillation": RewardDistillation,
    "robust-dpo": RobustDPO,
    "rpo": RPO,
    "rwr": RWR,
    "sft": SFT,
    "simper": SimPER,
    "simpo": SimPO,
    "slic": SLiC,
    "spo": SPO,
    "sppo": SPPO,
    "xpo": XPO,
}

__all__ = ["BNF", "DPO", "OBJECTIVES", "SFT", "Coupled", "Objective", "State", "objective_name", "reduce_losses"]


def objective_name(objective: Objective) -> str:
    """The name under which an objective's class stands in the table."""
    return next(name for name, kind in OBJECTIVES.items() if kind is type(objective))
