"""The prompts, and the two completions of each, that a person should compare. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from preftune.measures.overlap import TokenSequence, overlap

AskRule = Literal["margin", "ensemble", "diverse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairToAsk:
    """Two completions by number, and what they were chosen by: larger is asked first."""

    first: int
    second: int
    value: float


Different = Sequence[tuple[int, int]]
"""Pairs of completions whose texts differ, the first of them with the smaller number."""


def different_pairs(texts: Sequence[str]) -> Different:
    """Every two different texts, each text at its first place."""
    firsts = sorted({text: k for k, text in reversed(list(enumerate(texts)))}.values())
    return [(i, j) for i, j in combinations(firsts, 2)]


def closest_pair(rewards: Sequence[float | None], pairs: Different) -> PairToAsk | None:
    """The pair with the smallest margin |r_i - r_j|; its value is minus the margin.

    "Not All Preference Pairs Are Created Equal", 2024, arXiv 2406.17312: of implicit rewards, pairs with a small
    margin are worth more labels than those with a large one (from a secondary source).
    """
    return _best(pairs, lambda i, j: None if (gap := _gap(rewards, i, j)) is None else -abs(gap))


def disputed_pair(members: Mapping[str, Sequence[float | None]], pairs: Different) -> PairToAsk | None:
    """The pair about which the members of an ensemble disagree most: the standard deviation over the members of
    sigma(r_i - r_j), the chance that completion i wins by Bradley and Terry; 0 to 1/2.

    Liu et al., "Sample-Efficient Alignment for LLMs" (SEA), 2024, arXiv 2411.01493, explore by the uncertainty of an
    ensemble of reward models.
    """

    def spread(i: int, j: int) -> float | None:
        gaps = [_gap(rewards, i, j) for rewards in members.values()]
        known = [1 / (1 + math.exp(-min(max(gap, -500.0), 500.0))) for gap in gaps if gap is not None]
        return float(np.std(known)) if len(known) > 1 else None

    return _best(pairs, spread)


def telling_pair(pieces: Sequence[TokenSequence], pairs: Different, weight: float) -> PairToAsk | None:
    """The two completions that are like the others and unlike each other, before anything is judged.

        value = (s_i + s_j) / 2 - weight * u(i, j),   s_i = mean over all N completions k of u(i, k)

    with u the share of common tokens in order. Jinnai and Honda, "Annotation-Efficient Preference Optimization"
    (AEPO), 2024, arXiv 2405.13541: representative and diverse completions are annotated; its utility is a similarity
    of sentence embeddings (from a secondary source).
    """
    count = len(pieces)
    like = np.ones((count, count))
    for i, j in combinations(range(count), 2):
        like[i, j] = like[j, i] = overlap(pieces[i], pieces[j])
    typical = like.mean(1)
    return _best(pairs, lambda i, j: float((typical[i] + typical[j]) / 2 - weight * like[i, j]))


def within_budget(found: Sequence[PairToAsk | None], budget: int) -> list[int]:
    """Numbers of the prompts to ask about, at most `budget`, the largest value first; of equal ones the earlier."""
    able = [(-one.value, place) for place, one in enumerate(found) if one is not None]
    return [place for _, place in sorted(able)[:budget]]


def _gap(rewards: Sequence[float | None], i: int, j: int) -> float | None:
    one, two = rewards[i], rewards[j]
    return None if one is None or two is None else one - two


def _best(pairs: Different, value: Callable[[int, int], float | None]) -> PairToAsk | None:
    known = [PairToAsk(first=i, second=j, value=v) for i, j in pairs if (v := value(i, j)) is not None]
    return max(known, key=lambda one: one.value) if known else None
