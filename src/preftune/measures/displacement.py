"""Where probability went: from chosen and rejected completions, to own samples, by kind of token. Pure. Nats
throughout.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from preftune.errors import DataError
from preftune.stats import Interval, Numbers, cluster_means, mean_interval

TOKEN_KINDS = ("first", "end", "punctuation", "digits", "words")
"""Of a token: the first of a completion, its end-of-turn token, spaces and punctuation only, digits only,
anything else.
"""
EXPECTATIONS = ("unlikely", "likely")
"""Of a token under the reference: a probability below one half, or at least that (so surely its most probable
token).
"""


@dataclass(frozen=True, kw_only=True)
class ClassShift:
    """What the tokens of one class did."""

    share: float  # of all tokens
    per_token: float | None  # mean log-ratio of its tokens, all weighing the same; None without any
    per_completion: Interval  # what they add to the log-ratio of a completion: over all classes these means sum to its mean


def token_kind(text: str, place: int, ends: bool) -> str:
    """One of KINDS; `place` counts from 0, `ends` marks the end-of-turn token. An empty text is
    part of a character.
    """
    if ends:
        return "end"
    if place == 0:
        return "first"
    bare = "".join(one for one in text if not one.isspace() and unicodedata.category(one)[0] not in "PS")
    if text and not bare:
        return "punctuation"
    return "digits" if bare.isdigit() else "words"


def token_expectations(ref_logp: Float[np.ndarray, " T"]) -> list[str]:
    """One of EXPECTATIONS for each token."""
    return [EXPECTATIONS[int(likely)] for likely in ref_logp >= np.log(0.5)]


def by_class(
    log_ratios: Sequence[Float[np.ndarray, " _"]],
    classes: Sequence[Sequence[str]],
    names: Sequence[str],
    clusters: Sequence[int],
) -> dict[str, ClassShift]:
    """The log-ratios of completions, split over the classes of their tokens; completion i belongs to prompt
    `clusters[i]`.
    """
    flat, labels = np.concatenate(log_ratios), np.array([one for row in classes for one in row])
    if len(flat) != len(labels):
        raise DataError("Each token needs its class", got=f"{len(flat)} tokens and {len(labels)} classes")
    found = {}
    for name in names:
        here = labels == name
        sums = [
            float(ratio[np.array(row) == name].sum()) for ratio, row in zip(log_ratios, classes, strict=True)
        ]
        found[name] = ClassShift(
            share=float(here.mean()),
            per_token=float(flat[here].mean()) if here.any() else None,
            per_completion=mean_interval(cluster_means(sums, clusters)),
        )
    return found


def directions(chosen: Numbers, rejected: Numbers, clusters: Sequence[int]) -> dict[str, Interval]:
    """The share of pairs by what their two log-ratios did; where one is exactly 0, the pair is in none.

    `both_fall` is likelihood displacement in its plain form (Razin et al., 2024, arXiv 2410.08847):
    probability left both completions, so it went to others.
    """
    up, down = np.asarray(chosen), np.asarray(rejected)
    kinds = {
        "apart": (up > 0) & (down < 0),
        "both_rise": (up > 0) & (down > 0),
        "both_fall": (up < 0) & (down < 0),
        "wrong_way": (up < 0) & (down > 0),
    }
    return {
        name: mean_interval(cluster_means(which.astype(float), clusters)) for name, which in kinds.items()
    }


def sample_shift(
    log_ratios: Sequence[Float[np.ndarray, " _"]], clusters: Sequence[int]
) -> dict[str, Interval]:
    """Mean log-ratio of samples, per completion and per token.

    Of the policy's own samples it estimates KL(pi || ref) = E_pi[ log pi(y) - log ref(y) ]; of the
    reference's, -KL(ref || pi). Both are of completions cut off at the budget they were drawn with. An
    estimate from few samples may have the wrong sign.
    """
    values = {
        "log_ratio": [float(r.sum()) for r in log_ratios],
        "mean_log_ratio": [float(r.mean()) for r in log_ratios],
    }
    return {name: mean_interval(cluster_means(ones, clusters)) for name, ones in values.items()}


def rank_correlation(one: Numbers, two: Numbers) -> float | None:
    """Spearman's: the correlation of ranks, ties sharing their mean rank; None where one side does not vary."""
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (one, two))
    if len(first) != len(second):
        raise DataError("A correlation is of values in pairs", got=f"{len(first)} and {len(second)}")
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def same_share(samples: Sequence[bytes], known: Sequence[frozenset[bytes]]) -> float:
    """The share of samples that equal a completion in the data, by their tokens; `known` are those of each
    sample's prompt.
    """
    return float(np.mean([one in those for one, those in zip(samples, known, strict=True)]))
