"""One reward out of an ensemble of heads: their mean, one head drawn per prompt, or a duel of two heads."""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np

from preftune.rewards.base import PromptInput, Verdicts

HeadUse = Literal["mean", "thompson", "duel"]


def head_order(prompt: PromptInput, step: int, seed: int, count: int) -> np.ndarray:
    """The heads in a random order that depends on nothing but the prompt, the optimizer steps done, and the seed. A
    resumed run therefore repeats its draws, and a completion's reward does not depend on what else is scored.
    """
    key = json.dumps([seed, step, prompt if isinstance(prompt, str) else list(map(dict, prompt))])
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little"))).permutation(count)


def reward_of_heads(
    values: np.ndarray, prompts: Sequence[PromptInput], steps: Sequence[int], use: HeadUse, seed: int
) -> Verdicts:
    """The reward of each completion from the outputs of all heads, [completions, heads].

    In a duel the first head in the prompt's order names its best completion, and the next head that prefers
    another one names the second. Both get the mean of the heads, the other completions None.
    """
    mean = values.mean(1)
    rewards: list[float | None] = mean.tolist()
    groups: dict[str, list[int]] = {}
    for index, (prompt, step) in enumerate(zip(prompts, steps, strict=True)):
        groups.setdefault(repr((prompt, step)), []).append(index)
    for members in groups.values() if use != "mean" else ():
        order = head_order(prompts[members[0]], steps[members[0]], seed, values.shape[1])
        if use == "thompson":
            chosen = {index: float(values[index, order[0]]) for index in members}
        else:
            best = [members[place] for place in values[members][:, order].argmax(0)]
            duel = dict.fromkeys([best[0], next((one for one in best if one != best[0]), best[0])])
            chosen = {index: float(mean[index]) if index in duel else None for index in members}
        for index, reward in chosen.items():
            rewards[index] = reward
    return Verdicts(rewards=rewards, parts={"disagreement": values.std(1).tolist()})
