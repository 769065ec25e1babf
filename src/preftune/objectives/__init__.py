"""The closed table of objectives: one line each. A method is a file here, a page in docs/objectives and a
test file.
"""

from preftune.objectives.alpha_dpo import AlphaDPO
from preftune.objectives.aot import AOT
from preftune.objectives.apo import APODown, APOZero
from preftune.objectives.base import Coupled, Objective, State, reduce_losses
from preftune.objectives.bco import BCO
from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.best_of_n import BestOfN
from preftune.objectives.beta_dpo import BetaDPO
from preftune.objectives.bnf import BNF
from preftune.objectives.bpo import BPO
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.cal_dpo import CalDPO
from preftune.objectives.cpo import CPO
from preftune.objectives.dft import DFT
from preftune.objectives.discopop import DiscoPOP
from preftune.objectives.dpo import DPO
from preftune.objectives.dpop import DPOP
from preftune.objectives.dynamic_ft import DynamicFT
from preftune.objectives.era import ERA
from preftune.objectives.exo import EXO, EXOGroup
from preftune.objectives.f_dpo import FDPO
from preftune.objectives.gdpo import GDPO
from preftune.objectives.group_regression import AGRO, GVPO, CoPG
from preftune.objectives.grpo import DAPO, GRPO, GSPO, DrGRPO
from preftune.objectives.hinge import Hinge, SLiC
from preftune.objectives.hypo import HyPO
from preftune.objectives.imitation import DIL, GSIL
from preftune.objectives.inpo import INPO
from preftune.objectives.ipo import IPO
from preftune.objectives.kto import KTO
from preftune.objectives.length import LDDPO, LNDPO, RDPO
from preftune.objectives.mallowspo import MallowsPO
from preftune.objectives.mixture import MPO, Mixture
from preftune.objectives.nash_md import NashMD
from preftune.objectives.nca import NCA, InfoNCA
from preftune.objectives.orpo import ORPO
from preftune.objectives.ppo import PPO
from preftune.objectives.rebel import REBEL
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.reinforce_plus_plus import ReinforcePlusPlus
from preftune.objectives.reward_aware_rpo import RewardAwareRPO
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.objectives.rloo import RLOO, PreferenceMatching
from preftune.objectives.robust_dpo import RobustDPO
from preftune.objectives.rpo import RPO
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.objectives.simper import SimPER
from preftune.objectives.simpo import AlphaPO, CPOSimPO, SimPO
from preftune.objectives.spo import SPO
from preftune.objectives.sppo import SPPO
from preftune.objectives.tdpo import TDPO
from preftune.objectives.tis_dpo import TISDPO
from preftune.objectives.topr import TOPR
from preftune.objectives.wpo import WPO
from preftune.objectives.xpo import XPO

OBJECTIVES: dict[str, type[Objective]] = {
    "agro": AGRO,
    "alpha-dpo": AlphaDPO,
    "alphapo": AlphaPO,
    "aot": AOT,
    "apo-down": APODown,
    "apo-zero": APOZero,
    "bco": BCO,
    "bco-pair": BCOPair,
    "best-of-n": BestOfN,
    "beta-dpo": BetaDPO,
    "bnf": BNF,
    "bpo": BPO,
    "bradley-terry": BradleyTerry,
    "cal-dpo": CalDPO,
    "copg": CoPG,
    "cpo": CPO,
    "cpo-simpo": CPOSimPO,
    "dapo": DAPO,
    "dft": DFT,
    "dil": DIL,
    "discopop": DiscoPOP,
    "dpo": DPO,
    "dpop": DPOP,
    "dr-grpo": DrGRPO,
    "dynamic-ft": DynamicFT,
    "era": ERA,
    "exo": EXO,
    "exo-group": EXOGroup,
    "f-dpo": FDPO,
    "gdpo": GDPO,
    "grpo": GRPO,
    "gsil": GSIL,
    "gspo": GSPO,
    "gvpo": GVPO,
    "hinge": Hinge,
    "hypo": HyPO,
    "infonca": InfoNCA,
    "inpo": INPO,
    "ipo": IPO,
    "kto": KTO,
    "ld-dpo": LDDPO,
    "ln-dpo": LNDPO,
    "mallowspo": MallowsPO,
    "mixture": Mixture,
    "mpo": MPO,
    "nash-md": NashMD,
    "nca": NCA,
    "orpo": ORPO,
    "ppo": PPO,
    "preference-matching": PreferenceMatching,
    "r-dpo": RDPO,
    "rebel": REBEL,
    "reinforce": REINFORCE,
    "reinforce-plus-plus": ReinforcePlusPlus,
    "reward-aware-rpo": RewardAwareRPO,
    "reward-distillation": RewardDistillation,
    "rloo": RLOO,
    "robust-dpo": RobustDPO,
    "rpo": RPO,
    "rwr": RWR,
    "sft": SFT,
    "simper": SimPER,
    "simpo": SimPO,
    "slic": SLiC,
    "spo": SPO,
    "sppo": SPPO,
    "tdpo": TDPO,
    "tis-dpo": TISDPO,
    "topr": TOPR,
    "wpo": WPO,
    "xpo": XPO,
}

__all__ = [
    "BNF",
    "DPO",
    "OBJECTIVES",
    "SFT",
    "Coupled",
    "Objective",
    "State",
    "objective_name",
    "reduce_losses",
]


def objective_name(objective: Objective) -> str:
    """The name under which an objective's class stands in the table."""
    return next(name for name, kind in OBJECTIVES.items() if kind is type(objective))
