"""Settings of each objective under which the contracts are checked. A new objective adds its own line."""

from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.sft import SFT

VARIANTS: dict[str, list[Objective]] = {
    "bnf": [BNF(), BNF(reduction="pair_min")],
    "dpo": [DPO(), DPO(beta=0.7, label_smoothing=0.2)],
    "sft": [SFT(), SFT(reduction="sequence_mean")],
}
ALL = [(name, variant) for name in OBJECTIVES for variant in VARIANTS[name]]
IDS = [f"{name}-{i}" for name in OBJECTIVES for i, _ in enumerate(VARIANTS[name])]
