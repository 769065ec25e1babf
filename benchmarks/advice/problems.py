"""Problems drawn at random, on which advice is tried: what is learned, from which data, with which budget.

docs/advice.md describes the measure; this module defines the distribution.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from preftune.lab.distributions import FromReference, Normal, Skewed, TanhCauchy, Tilted, Truncated
from preftune.lab.loop import Loop
from preftune.lab.problem import Contexts, Data, LengthRewardModel, Problem
from preftune.lab.reward_functions import Bump, Near, Short

SHARES = {"tabular": 0.6, "mlp": 0.1, "hazard": 0.3}  # of the kinds of policy
REWARDED = 0.7  # share of problems with a reward that own samples can be judged by
SAMPLE_ROUNDS = (0, 1, 4, 16, 64)  # collections of own samples that the budget affords; 0: none
STEPS = (30, 60, 120)
NOISE = (0.0, 0.0, 0.1, 0.25)
HAZARD_GROUPS = 8  # of a gradient step; of the other policies a step is a whole collection


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A problem with what its user may do.

    Args:
        problem: what is learned, from which data.
        groups: prompts of the data, each with the problem's `data.completions`.
        steps: gradient steps that can be paid.
        rounds: collections of `groups` groups that may be sampled in training.
        can_reward: whether there is a reward that completions can be judged by.
    """

    problem: Problem
    groups: int
    steps: int
    rounds: int
    can_reward: bool

    @property
    def samples(self) -> int:
        return self.rounds * self.groups * self.problem.data.completions

    @property
    def on_policy(self) -> bool:
        """Whether own samples can be drawn and judged."""
        return self.can_reward and self.rounds > 0

    def loop(self, source: str) -> Loop:
        """All steps on the data; or on own samples, gone through as often as the budget of samples makes it
        necessary.
        """
        size, hazard = self.problem.data.completions, self.problem.policy == "hazard"
        step_groups = min(HAZARD_GROUPS, self.groups) if hazard else self.groups
        once = Loop(
            steps=self.steps,
            collection=size * self.groups,
            minibatch=size * step_groups,
            eval_every=self.steps,
        )
        if source == "offline":
            return once
        passes = self.steps * step_groups / self.groups
        return replace(once, source="policy", epochs=max(1, math.ceil(passes / self.rounds)))

    def posed(self, source: str) -> Problem:
        """Own samples are judged by the reward itself, so nobody exchanges their pairs."""
        return (
            self.problem
            if source == "offline"
            else replace(self.problem, data=replace(self.problem.data, noise=0.0))
        )


def drawn(seed: int, index: int) -> Draw:
    """Problem number `index` of a seed: the same whatever else is drawn."""
    rng = np.random.default_rng([seed, index])
    policy = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    completions, noise = int(rng.choice((2, 4, 8))), float(rng.choice(NOISE))
    common: dict[str, Any] = {"name": f"draw-{seed}-{index}", "policy": policy}
    if policy == "hazard":
        size, groups = int(rng.choice((16, 32))), int(rng.choice((16, 32, 64)))
        mean, deviation = size * rng.uniform(0.3, 0.8), size * rng.uniform(0.08, 0.25)
        reward: Any = Short() if rng.random() < 0.5 else Near(length=float(size * rng.uniform(0.1, 0.9)))
        common |= {
            "size": size,
            "reference": Normal(mean=float(mean), deviation=float(deviation)),
            "reward": reward,
            "reward_model": LengthRewardModel(pairs=500) if rng.random() < 0.5 else None,
        }
    else:
        size = int(rng.choice((20, 40)))
        groups = int(rng.choice((4, 8, 16) if policy == "mlp" else (4, 8, 16, 32)))
        reference = Tilted(tilt=float(rng.uniform(-6, 0))) if rng.random() < 0.5 else TanhCauchy()
        bump = Bump(
            centre=float(rng.uniform(0, size - 1)),
            width=float(size * np.exp(rng.uniform(np.log(0.05), np.log(0.4)))),
        )
        contexts = Contexts(
            train=groups, held_out=20 if policy == "mlp" else None, size=20 if policy == "mlp" else None
        )
        common |= {"size": size, "reference": reference, "reward": bump, "contexts": contexts}
    which = rng.random()
    law: Any = FromReference() if which < 0.5 else Skewed(tilt=float(rng.uniform(-2, 4)))
    if policy == "hazard" and which > 0.75:
        law = Truncated(mean=float(size * rng.uniform(0.1, 0.4)), share=float(rng.uniform(0.5, 1)))
    return Draw(
        problem=Problem(data=Data(law=law, completions=completions, noise=noise), **common),
        groups=groups,
        steps=int(rng.choice(STEPS)),
        rounds=int(rng.choice(SAMPLE_ROUNDS)),
        can_reward=bool(rng.random() < REWARDED),
    )
