"""The methods of the findings, with the settings of Tajwar et al. (ICML 2024) and its code, and those that
BNF is compared with.
"""

from preftune.lab.methods import Method
from preftune.objectives.best_of_n import BestOfN
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.grpo import DrGRPO
from preftune.objectives.ipo import IPO
from preftune.objectives.kto import KTO
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.objectives.simpo import SimPO

MARGIN_OF_TEN = 0.05  # tau of IPO whose target margin 1 / (2 tau) is 10
UNBOUNDED = 1e30

CAST: dict[str, Method] = {
    "pref-ft": Method(objective=SFT(), only="preferred"),
    "best-of-n": Method(objective=BestOfN(negative_weight=0.0)),
    "best-of-n, negatives": Method(objective=BestOfN(negative_weight=0.05, min_ratio=0.0)),
    "best-of-n, guarded": Method(objective=BestOfN(negative_weight=0.05)),
    "ipo": Method(objective=IPO(tau=MARGIN_OF_TEN, reduction="sum"), min_gap=0.2),
    "ipo, all pairs": Method(objective=IPO(tau=MARGIN_OF_TEN, reduction="sum")),
    "dpo": Method(objective=DPO(beta=0.5)),
    "dpo, beta 0.1": Method(objective=DPO(beta=0.1)),
    "rwr": Method(objective=RWR(temperature=0.1, max_weight=UNBOUNDED)),
    "rwr, T 1": Method(objective=RWR(temperature=1.0, max_weight=UNBOUNDED)),
    "reinforce": Method(objective=REINFORCE()),
    "ppo": Method(objective=DrGRPO(clip=0.2, max_tokens=1)),
    "bnf": Method(objective=BNF()),
    "bnf, dispreferred only": Method(objective=BNF(), only="dispreferred"),
    "bnf, singles": Method(objective=BNF(), labels="threshold", threshold=0.04),
    "kto, dispreferred only": Method(objective=KTO(), only="dispreferred"),
    "simpo": Method(objective=SimPO()),
    "kto": Method(objective=KTO()),
}
"""`ppo` is its clipped ratio without a critic: Dr. GRPO on one token, or with one divisor for all lengths."""
