"""The table of objectives: one line each. A method is a file here, a page in docs/objectives and a test file."""

from preftune.objectives.alpha_dpo import AlphaDPO
from preftune.objectives.aot import AOT
from preftune.objectives.apo import APODown, APOZero
from preftune.objectives.base import Objective
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
from preftune.objectives.stepwise import Stepwise
from preftune.objectives.tdpo import TDPO
from preftune.objectives.tis_dpo import TISDPO
from preftune.objectives.topr import TOPR
from preftune.objectives.wpo import WPO
from preftune.objectives.xpo import XPO

_KINDS: tuple[type[Objective], ...] = (
    AGRO,
    AlphaDPO,
    AlphaPO,
    AOT,
    APODown,
    APOZero,
    BCO,
    BCOPair,
    BestOfN,
    BetaDPO,
    BNF,
    BPO,
    BradleyTerry,
    CalDPO,
    CoPG,
    CPO,
    CPOSimPO,
    DAPO,
    DFT,
    DIL,
    DiscoPOP,
    DPO,
    DPOP,
    DrGRPO,
    DynamicFT,
    ERA,
    EXO,
    EXOGroup,
    FDPO,
    GDPO,
    GRPO,
    GSIL,
    GSPO,
    GVPO,
    Hinge,
    HyPO,
    InfoNCA,
    INPO,
    IPO,
    KTO,
    LDDPO,
    LNDPO,
    MallowsPO,
    Mixture,
    MPO,
    NashMD,
    NCA,
    ORPO,
    PPO,
    PreferenceMatching,
    RDPO,
    REBEL,
    REINFORCE,
    ReinforcePlusPlus,
    RewardAwareRPO,
    RewardDistillation,
    RLOO,
    RobustDPO,
    RPO,
    RWR,
    SFT,
    SimPER,
    SimPO,
    SLiC,
    SPO,
    SPPO,
    Stepwise,
    TDPO,
    TISDPO,
    TOPR,
    WPO,
    XPO,
)
OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in _KINDS}
