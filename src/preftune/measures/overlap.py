"""What the two completions of pairs have in common, and what length alone would predict. Pure, numpy
only.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.errors import DataError
from preftune.stats import Interval, cluster_means, mean_interval

NEAR_IDENTICAL = 0.9  # share of tokens in common from which two completions differ in a word or two

TokenSequence = Sequence[Hashable]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOverlap:
    """What chosen and rejected share. Intervals are over prompts, shares over pairs."""

    num_pairs: int
    overlap: Interval  # share of tokens in common; 1 - overlap is the normalized edit distance
    prefix_tokens: float  # mean
    prefix_share: float  # mean, of the shorter completion
    near_identical: float  # share of pairs whose overlap is NEAR_IDENTICAL or more, identical pairs included
    identical: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """What the number of tokens predicts about a pair."""

    chosen_longer: Interval  # chance; equal lengths count half
    difference: Interval  # tokens, chosen - rejected
    longer_wins: float | None  # accuracy of the rule among pairs of different lengths


def common_tokens(one: TokenSequence, two: TokenSequence) -> int:
    """Length of the longest common subsequence.

    Bit-parallel: Hyyrö, "Bit-Parallel LCS-length Computation Revisited", AWOCA 2004; one machine word holds
    64 tokens of `one`, so it takes len(one) * len(two) / 64 steps.
    """
    places: dict[Hashable, int] = {}
    for index, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << index
    everything = (1 << len(one)) - 1
    open_places = everything
    for token in two:
        matched = open_places & places.get(token, 0)
        open_places = ((open_places + matched) | (open_places - matched)) & everything
    return len(one) - open_places.bit_count()


def overlap(one: TokenSequence, two: TokenSequence) -> float:
    """Share of tokens that two completions have in common, in the same order.

        overlap = 2 LCS(one, two) / (|one| + |two|) = 1 - edit distance / (|one| + |two|)

    The edit distance counts insertions and deletions. Two empty completions are equal.
    """
    total = len(one) + len(two)
    return 2 * common_tokens(one, two) / total if total else 1.0


def shared_prefix(one: TokenSequence, two: TokenSequence) -> int:
    """Tokens before the first one that differs."""
    return next(
        (k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )


def pair_overlap(
    pairs: Sequence[tuple[TokenSequence, TokenSequence]], clusters: Sequence[int]
) -> PairOverlap:
    """The overlap of (chosen, rejected) pairs; pair p belongs to prompt `clusters[p]`."""
    if not pairs:
        raise DataError("There are no pairs to compare", got="0 pairs", expected="at least one")
    shares = np.array([overlap(one, two) for one, two in pairs])
    prefixes = np.array([shared_prefix(one, two) for one, two in pairs])
    shorter = np.array([max(1, min(len(one), len(two))) for one, two in pairs])
    return PairOverlap(
        num_pairs=len(pairs),
        overlap=mean_interval(cluster_means(shares, clusters)),
        prefix_tokens=float(prefixes.mean()),
        prefix_share=float((prefixes / shorter).mean()),
        near_identical=float((shares >= NEAR_IDENTICAL).mean()),
        identical=float((shares == 1).mean()),
    )


def length_bias(chosen: Sequence[int], rejected: Sequence[int], clusters: Sequence[int]) -> LengthBias:
    """What lengths (tokens) predict about pairs; pair p belongs to prompt `clusters[p]`."""
    difference = np.asarray(chosen, float) - np.asarray(rejected, float)
    longer = (difference > 0) + 0.5 * (difference == 0)
    unequal = difference[difference != 0]
    return LengthBias(
        chosen_longer=mean_interval(cluster_means(longer, clusters)),
        difference=mean_interval(cluster_means(difference, clusters)),
        longer_wins=float((unequal > 0).mean()) if len(unequal) else None,
    )
