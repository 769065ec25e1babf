"""A contest: every method that a problem's user could run, each at its own best learning rate, and the regret
of a choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from benchmarks.advice.problems import Draw

from preftune.errors import TrainingError
from preftune.lab.environment import World
from preftune.lab.loop import run
from preftune.lab.methods import Method
from preftune.lab.paper_methods import MARGIN_OF_TEN, UNBOUNDED
from preftune.objectives.best_of_n import BestOfN
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.grpo import GRPO, DrGRPO
from preftune.objectives.ipo import IPO
from preftune.objectives.kto import KTO
from preftune.objectives.nca import NCA
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.rloo import RLOO
from preftune.objectives.robust_dpo import RobustDPO
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.objectives.simpo import SimPO
from preftune.objectives.wpo import WPO
from preftune.race.halving import rank_rates
from preftune.types import Rewards

Source = Literal["offline", "on-policy"]

METHODS: dict[str, Method] = {
    "sft": Method(objective=SFT(), only="preferred"),
    "bnf": Method(objective=BNF()),
    "kto": Method(objective=KTO()),
    "dpo": Method(objective=DPO()),
    "robust-dpo": Method(objective=RobustDPO()),
    "ipo": Method(objective=IPO(tau=MARGIN_OF_TEN, reduction="sum")),
    "simpo": Method(objective=SimPO()),
    "wpo": Method(objective=WPO()),
    "nca": Method(objective=NCA()),
    "best-of-n": Method(objective=BestOfN(negative_weight=0.0)),
    "rwr": Method(objective=RWR(temperature=0.1, max_weight=UNBOUNDED)),
    "reinforce": Method(objective=REINFORCE()),
    "rloo": Method(objective=RLOO()),
    "grpo": Method(objective=GRPO()),
    "dr-grpo": Method(objective=DrGRPO(clip=0.2, max_tokens=1)),
}
"""What takes part, with its settings; `dr-grpo` is ppo's clipped ratio without a critic."""

OWN_SAMPLES_ONLY = ("reinforce", "rloo", "grpo", "dr-grpo")
DATA_ONLY = ("sft", "kto", "robust-dpo", "wpo")  # on own samples best-of-n, bnf and dpo stand for them
RATES = {"mlp": (3e-3, 1e-2, 3e-2), "tabular": (0.03, 0.1, 0.3, 1.0), "hazard": (0.03, 0.1, 0.3, 1.0)}
TUNING_SEEDS, REPORTED_SEEDS = 3, 5


@dataclass(frozen=True, kw_only=True, order=True)
class Arm:
    """Where completions come from, and what is learned from them."""

    source: Source
    objective: str


def choices(draw: Draw) -> tuple[Arm, ...]:
    """What the user of a problem could run: rewards and own samples only where there are some."""
    found = []
    for name, method in METHODS.items():
        if name not in OWN_SAMPLES_ONLY and (draw.can_reward or method.objective.signal is not Rewards):
            found.append(Arm(source="offline", objective=name))
        if draw.on_policy and name not in DATA_ONLY:
            found.append(Arm(source="on-policy", objective=name))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Raced:
    """A problem's results: the final expected reward of each choice, by its tuned rate, on seeds that tuning
    did not see.
    """

    returns: Mapping[Arm, float]
    rates: Mapping[Arm, float]
    start: float
    full_range: float


def race(draw: Draw, seed: int) -> Raced:
    """Every choice at every rate. Tuning and reported seeds run side by side, since no seed sees another."""
    torch.set_num_threads(1)
    seeds = tuple(range(seed, seed + TUNING_SEEDS + REPORTED_SEEDS))
    returns, rates, start = {}, {}, 0.0
    for choice in choices(draw):
        finals = {}
        for rate in RATES[draw.problem.policy]:
            try:
                world = World(draw.posed(choice.source), seeds)
                track = run(world, METHODS[choice.objective], draw.loop(choice.source), rate)
            except TrainingError:
                continue  # a rate at which the loss is not finite
            finals[rate] = track.final("return")
            start = float(track.measures["return"][0].mean())
        ranked = rank_rates({rate: values[:TUNING_SEEDS].tolist() for rate, values in finals.items()})
        if ranked:
            rates[choice] = ranked[0]
            returns[choice] = float(finals[rates[choice]][TUNING_SEEDS:].mean())
    reward = draw.problem.reward_values()
    return Raced(returns=returns, rates=rates, start=start, full_range=float(np.ptp(reward)))
