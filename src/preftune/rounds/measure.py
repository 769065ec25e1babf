"""A policy of a round on held-out prompts: reward, pass@k, and how different its completions are. Pure.

Progress and regress at once: Wu et al., "Progress or Regress? Self-Improvement Reversal in Post-training", 2024,
arXiv 2407.05013, find that pass@1 rises while the variety of answers falls.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.measures.coverage import expected_best
from preftune.stats import Interval, mean_interval

_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Means over held-out prompts. `pass_1` and `pass_k` are the expected shares of prompts with a completion of
    reward `threshold` or more among 1 and among k; `distinct_2` is the share of different pairs of neighboring words
    among all those of a prompt's completions, and `distinct` that of different completions.
    """

    num_prompts: int
    k: int
    threshold: float
    reward: Interval
    pass_1: Interval
    pass_k: Interval
    distinct: Interval
    distinct_2: Interval
    length: Interval  # characters


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of words in texts over all of them; None where there is no n-gram.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016, arXiv 1510.03055.
    """
    grams = []
    for text in texts:
        words = _WORDS.findall(text.lower())
        grams += [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def measure_round(
    texts: Sequence[Sequence[str]], rewards: Sequence[Sequence[float | None]], threshold: float
) -> HeldOut | None:
    """The measures of completions with their rewards, prompt by prompt; prompts without a reward take no part."""
    known = [
        (ones, np.array([reward for reward in mine if reward is not None], dtype=float))
        for ones, mine in zip(texts, rewards, strict=True)
        if any(reward is not None for reward in mine)
    ]
    if not known:
        return None
    k = min(len(mine) for _, mine in known)
    passed = [(mine >= threshold).astype(float) for _, mine in known]
    pairs = [share for ones, _ in known if (share := distinct_n(ones, 2)) is not None]
    return HeldOut(
        num_prompts=len(known),
        k=k,
        threshold=threshold,
        reward=mean_interval([float(mine.mean()) for _, mine in known]),
        pass_1=mean_interval([expected_best(one, 1) for one in passed]),
        pass_k=mean_interval([expected_best(one, k) for one in passed]),
        distinct=mean_interval([len(set(ones)) / len(ones) for ones, _ in known]),
        distinct_2=mean_interval(pairs or [0.0]),
        length=mean_interval([float(np.mean([len(one) for one in ones])) for ones, _ in known]),
    )
