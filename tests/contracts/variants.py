"""Settings of each objective under which the contracts are checked. A new objective adds its own line."""

from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.alpha_dpo import AlphaDPO
from preftune.objectives.aot import AOT
from preftune.objectives.apo import APODown, APOZero
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

VARIANTS: dict[str, list[Objective]] = {
    "alpha-dpo": [AlphaDPO(), AlphaDPO(beta=0.7, gamma=0.2, alpha=0.5)],
    "alphapo": [AlphaPO(), AlphaPO(beta=1.0, gamma=0.6, alpha=-0.3), AlphaPO(alpha=0.0)],
    "aot": [AOT(), AOT(beta=0.7, pairing="unpaired"), AOT(beta=0.7, label_smoothing=0.2)],
    "apo-down": [APODown(), APODown(beta=0.7)],
    "apo-zero": [APOZero(), APOZero(beta=0.7, unit="completion")],
    "bco": [BCO(), BCO(beta=0.7)],
    "bco-pair": [BCOPair(), BCOPair(beta=0.7)],
    "beta-dpo": [BetaDPO(), BetaDPO(beta=0.7, alpha=0.2, keep=0.5), BetaDPO(alpha=0.0, keep=1.0)],
    "bnf": [BNF(), BNF(reduction="pair_min")],
    "cal-dpo": [CalDPO(), CalDPO(beta=0.5, calibration_weight=1.0)],
    "cpo": [CPO(), CPO(beta=0.7, nll_weight=0.3, nll_scale="sum")],
    "dft": [DFT(), DFT(tau=0.3, gamma=0.9, variant="dft2"), DFT(gamma=1.0)],
    "dil": [DIL(), DIL(link="ukl"), DIL(link="bce")],
    "discopop": [DiscoPOP(), DiscoPOP(beta=0.7, tau=0.3), DiscoPOP(beta=2.0, tau=1.0)],
    "dpo": [DPO(), DPO(beta=0.7, label_smoothing=0.2)],
    "dpop": [DPOP(), DPOP(beta=0.7, penalty=2.0)],
    "dynamic-ft": [DynamicFT()],
    "era": [ERA(), ERA(beta=0.5, gamma=0.3)],
    "exo": [EXO(), EXO(beta=0.7, label_smoothing=0.2)],
    "f-dpo": [
        FDPO(),
        FDPO(beta=0.7, divergence="reverse_kl"),
        FDPO(divergence="forward_kl"),
        FDPO(divergence="alpha", alpha=0.3),
        FDPO(divergence="alpha", alpha=0.7),
    ],
    "gdpo": [GDPO(), GDPO(beta=0.7, soft_label=0.7)],
    "gsil": [
        GSIL(),
        GSIL(beta=0.7, offset=0.5, link="brier"),
        GSIL(beta=0.7, offset=0.5, link="hinge"),
        GSIL(beta=0.7, offset=0.5, link="kliep"),
        GSIL(beta=0.7, offset=0.5, link="lsif"),
    ],
    "hinge": [Hinge(), Hinge(beta=0.7)],
    "infonca": [InfoNCA(), InfoNCA(beta=0.7, reward_temperature=0.3), InfoNCA(reward_temperature=0.0)],
    "ipo": [IPO(), IPO(tau=0.7, reduction="sum")],
    "kto": [KTO(), KTO(beta=0.7, desirable_weight=1.3, undesirable_weight=0.6)],
    "ld-dpo": [LDDPO(), LDDPO(beta=0.7, alpha=0.2)],
    "ln-dpo": [LNDPO(), LNDPO(beta=0.7)],
    "nca": [NCA(), NCA(beta=0.7, reward_temperature=0.3), NCA(reward_temperature=0.0)],
    "orpo": [ORPO(), ORPO(odds_weight=0.7)],
    "r-dpo": [RDPO(), RDPO(beta=0.7, alpha=0.3)],
    "reward-distillation": [RewardDistillation(), RewardDistillation(beta=0.7)],
    "robust-dpo": [RobustDPO(), RobustDPO(beta=0.7, label_smoothing=0.2)],
    "rpo": [RPO(), RPO(beta=0.7, nll_weight=0.6, nll_scale="sum")],
    "rwr": [RWR(), RWR(temperature=0.7, max_weight=1.5, reduction="sequence_mean")],
    "sft": [SFT(), SFT(reduction="sequence_mean")],
    "simper": [SimPER()],
    "simpo": [SimPO(), SimPO(beta=0.7, gamma=0.2)],
    "slic": [SLiC(), SLiC(delta=3.0, nll_weight=0.6, nll_scale="mean")],
    "sppo": [SPPO(), SPPO(beta=0.7, scale=1.0)],
}
ALL = [(name, variant) for name in OBJECTIVES for variant in VARIANTS[name]]
IDS = [f"{name}-{i}" for name in OBJECTIVES for i, _ in enumerate(VARIANTS[name])]
