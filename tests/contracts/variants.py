"""Settings of each objective under which the contracts are checked. An objective without a line here is checked
with its defaults, and with each hyper-parameter changed."""

from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.alpha_dpo import AlphaDPO
from preftune.objectives.aot import AOT
from preftune.objectives.apo import APODown, APOZero
from preftune.objectives.bco import BCO
from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.best_of_n import BestOfN
from preftune.objectives.beta_dpo import BetaDPO
from preftune.objectives.bnf import BNF
from preftune.objectives.bpo import BPO
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.cal_dpo import CalDPO
from preftune.objectives.contracts.checks import default_variants
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

VARIANTS: dict[str, list[Objective]] = {
    "agro": [AGRO(), AGRO(beta=0.7)],
    "alpha-dpo": [AlphaDPO(), AlphaDPO(beta=0.7, gamma=0.2, alpha=0.5)],
    "alphapo": [AlphaPO(), AlphaPO(beta=1.0, gamma=0.6, alpha=-0.3), AlphaPO(alpha=0.0)],
    "aot": [AOT(), AOT(beta=0.7, pairing="unpaired"), AOT(beta=0.7, label_smoothing=0.2)],
    "apo-down": [APODown(), APODown(beta=0.7)],
    "apo-zero": [APOZero(), APOZero(beta=0.7, unit="completion")],
    "bco": [BCO(), BCO(beta=0.7)],
    "bco-pair": [BCOPair(), BCOPair(beta=0.7)],
    "best-of-n": [
        BestOfN(),
        BestOfN(negative_weight=0.6, negatives="mean", min_ratio=0.9, nll_scale="sum"),
        BestOfN(negatives="worst"),
    ],
    "beta-dpo": [BetaDPO(), BetaDPO(beta=0.7, alpha=0.2, keep=0.5), BetaDPO(alpha=0.0, keep=1.0)],
    "bnf": [BNF(), BNF(reduction="pair_min")],
    "bpo": [
        BPO(),
        BPO(beta=0.7, link="square"),
        BPO(beta=0.7, link="hinge"),
        BPO(link="square"),
        BPO(link="hinge"),
    ],
    "bradley-terry": [BradleyTerry(), BradleyTerry(margin=0.6, centring=0.2)],
    "cal-dpo": [CalDPO(), CalDPO(beta=0.5, calibration_weight=1.0)],
    "copg": [CoPG(), CoPG(beta=0.7)],
    "cpo": [CPO(), CPO(beta=0.7, nll_weight=0.3, nll_scale="sum")],
    "cpo-simpo": [CPOSimPO(), CPOSimPO(beta=0.7, gamma=0.2, nll_weight=0.6, nll_scale="sum")],
    "dapo": [DAPO(), DAPO(clip_low=0.1, clip_high=0.6, eps=0.3)],
    "dft": [DFT(), DFT(tau=0.3, gamma=0.9, variant="dft2"), DFT(gamma=1.0)],
    "dil": [DIL(), DIL(link="ukl"), DIL(link="bce")],
    "discopop": [DiscoPOP(), DiscoPOP(beta=0.7, tau=0.3), DiscoPOP(beta=2.0, tau=1.0)],
    "dpo": [DPO(), DPO(beta=0.7, label_smoothing=0.2)],
    "dpop": [DPOP(), DPOP(beta=0.7, penalty=2.0)],
    "dr-grpo": [DrGRPO(), DrGRPO(clip=0.1, max_tokens=7)],
    "dynamic-ft": [DynamicFT()],
    "era": [ERA(), ERA(beta=0.5, gamma=0.3)],
    "exo": [EXO(), EXO(beta=0.7, label_smoothing=0.2)],
    "exo-group": [EXOGroup(), EXOGroup(beta=0.7, reward_temperature=1.0)],
    "f-dpo": [
        FDPO(),
        FDPO(beta=0.7, divergence="reverse_kl"),
        FDPO(divergence="forward_kl"),
        FDPO(divergence="alpha", alpha=0.3),
        FDPO(divergence="alpha", alpha=0.7),
    ],
    "gdpo": [GDPO(), GDPO(beta=0.7, soft_label=0.7), GDPO(link="square")],
    "grpo": [GRPO(), GRPO(beta=0.7, clip=0.1, eps=0.3, kl="k2"), GRPO(beta=0.0)],
    "gsil": [
        GSIL(),
        GSIL(beta=0.7, offset=0.5, link="brier"),
        GSIL(beta=0.7, offset=0.5, link="hinge"),
        GSIL(beta=0.7, offset=0.5, link="kliep"),
        GSIL(beta=0.7, offset=0.5, link="lsif"),
    ],
    "gspo": [GSPO(), GSPO(clip_low=0.1, clip_high=0.3, eps=0.3)],
    "gvpo": [GVPO(), GVPO(beta=0.7)],
    "hinge": [Hinge(), Hinge(beta=0.7)],
    "hypo": [HyPO(), HyPO(beta=0.7, kl_weight=0.3), HyPO(kl_weight=0.0)],
    "infonca": [InfoNCA(), InfoNCA(beta=0.7, reward_temperature=0.3), InfoNCA(reward_temperature=0.0)],
    "inpo": [INPO(), INPO(eta=0.7, tau=0.001), INPO(eta=0.7, tau=0.4)],
    "ipo": [IPO(), IPO(tau=0.7, reduction="sum")],
    "kto": [KTO(), KTO(beta=0.7, desirable_weight=1.3, undesirable_weight=0.6)],
    "ld-dpo": [LDDPO(), LDDPO(beta=0.7, alpha=0.2)],
    "ln-dpo": [LNDPO(), LNDPO(beta=0.7)],
    "mallowspo": [MallowsPO(), MallowsPO(scale=0.29), MallowsPO(beta=0.7, scale=0.4)],
    "mixture": [
        Mixture(),
        Mixture(terms="bnf + 0.5*sft"),
        Mixture(terms="2*dpo + sft(reduction=sequence_mean)"),
    ],
    "mpo": [MPO(), MPO(dpo_weight=0.3, bco_weight=2.0, sft_weight=0.4, beta=0.7)],
    "nash-md": [NashMD(), NashMD(beta=0.7), NashMD(beta=0.0)],
    "nca": [NCA(), NCA(beta=0.7, reward_temperature=0.3), NCA(reward_temperature=0.0)],
    "orpo": [ORPO(), ORPO(odds_weight=0.7)],
    "ppo": [
        PPO(),
        PPO(kl_coef=0.7, clip=0.1, vf_coef=0.6, gamma=0.8, lam=0.3, value_clip=0.2, dual_clip=1.1),
        PPO(kl_coef=0.0),
        PPO(kl_coef=0.7, gamma=0.8, lam=0.3, normalize_returns=False),
    ],
    "preference-matching": [PreferenceMatching()],
    "r-dpo": [RDPO(), RDPO(beta=0.7, alpha=0.3)],
    "rebel": [REBEL(), REBEL(eta=0.7, kl_coef=0.4), REBEL(kl_coef=0.0)],
    "reinforce": [
        REINFORCE(),
        REINFORCE(credit="step"),
        REINFORCE(baseline="none", beta=0.7),
        REINFORCE(baseline="mean"),
        REINFORCE(baseline="moving_average", momentum=0.9),
        REINFORCE(baseline="moving_average", momentum=0.5),
    ],
    "reinforce-plus-plus": [
        ReinforcePlusPlus(),
        ReinforcePlusPlus(beta=0.7, gamma=0.8, clip=0.1),
        ReinforcePlusPlus(beta=0.0),
    ],
    "reward-aware-rpo": [
        RewardAwareRPO(),
        RewardAwareRPO(beta=0.7, eta=0.4, distance="forward_kl"),
        RewardAwareRPO(beta=0.7, eta=0.4, distance="squared"),
    ],
    "reward-distillation": [RewardDistillation(), RewardDistillation(beta=0.7)],
    "rloo": [RLOO(), RLOO(beta=0.7, clip=0.2), RLOO(beta=0.0)],
    "robust-dpo": [RobustDPO(), RobustDPO(beta=0.7, label_smoothing=0.2)],
    "rpo": [RPO(), RPO(beta=0.7, nll_weight=0.6, nll_scale="sum")],
    "rwr": [RWR(), RWR(temperature=0.7, max_weight=1.5, reduction="sequence_mean")],
    "sft": [SFT(), SFT(reduction="sequence_mean")],
    "simper": [SimPER()],
    "simpo": [SimPO(), SimPO(beta=0.7, gamma=0.2)],
    "slic": [SLiC(), SLiC(delta=3.0, nll_weight=0.6, nll_scale="mean")],
    "spo": [SPO(), SPO(win="sign")],
    "sppo": [SPPO(), SPPO(beta=0.7, scale=1.0)],
    "stepwise": [Stepwise(), Stepwise(loss="squared")],
    "tdpo": [TDPO(), TDPO(variant="tdpo1"), TDPO(beta=0.7, alpha=0.2)],
    "tis-dpo": [TISDPO(), TISDPO(beta=0.7, alpha=0.0, mu=0.3, lower=-1.0, upper=0.5)],
    "topr": [TOPR(), TOPR(positive_low=0.3, positive_high=1.2, negative_low=0.8, negative_high=1.3)],
    "wpo": [WPO(), WPO(beta=0.7)],
    "xpo": [XPO(), XPO(beta=0.7, alpha=0.3), XPO(alpha=0.0)],
}


def variants_of(name: str) -> list[Objective]:
    """The settings above, or the defaults with each hyper-parameter changed."""
    return list(VARIANTS.get(name) or default_variants(OBJECTIVES[name]))


ALL = [(name, variant) for name in OBJECTIVES for variant in variants_of(name)]
IDS = [f"{name}-{i}" for name in OBJECTIVES for i, _ in enumerate(variants_of(name))]
