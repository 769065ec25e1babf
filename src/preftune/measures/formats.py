"""Formats that readers and rewards like whatever the answer says: lists, bold text, links, emoji, exclamation marks,
affirmation. Pure, numpy only.

The six patterns are those of Zhang et al., "From Lists to Emojis: How Format Bias Affects Model Alignment", 2024,
arXiv 2409.11704; the expressions are ours.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.stats import Interval, cluster_means, mean_interval

STYLES: Mapping[str, re.Pattern[str]] = {
    "list": re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S", re.M),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__|<(?:b|strong)>", re.I),
    "link": re.compile(r"\[[^\]\n]+\]\([^)\s]+\)|https?://\S|www\.\w"),
    "emoji": re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    "exclamation": re.compile(r"!(?!\[)"),  # not that of an image in Markdown
    "affirmation": re.compile(
        r"^\W*(?:sure|certainly|of course|absolutely|definitely|great question)\b", re.I
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatBias:
    """A format in the two completions of pairs. Intervals are over prompts."""

    chosen: float  # share of chosen completions that have it
    rejected: float
    difference: Interval  # chosen less rejected
    wins: float | None  # share of pairs, of those where one completion has it, whose chosen completion does
    num_unequal: int  # these pairs


def has_format(text: str, name: str) -> bool:
    return STYLES[name].search(text) is not None


def format_bias(pairs: Sequence[tuple[str, str]], clusters: Sequence[int]) -> dict[str, FormatBias]:
    """The formats that are in any completion of (chosen, rejected) pairs; pair p belongs to prompt `clusters[p]`."""
    found = {}
    for name in STYLES:
        flags = np.array([[has_format(text, name) for text in pair] for pair in pairs], dtype=float)
        if not flags.any():
            continue
        difference = flags[:, 0] - flags[:, 1]
        unequal = difference[difference != 0]
        found[name] = FormatBias(
            chosen=float(flags[:, 0].mean()),
            rejected=float(flags[:, 1].mean()),
            difference=mean_interval(cluster_means(difference, clusters)),
            wins=float((unequal > 0).mean()) if len(unequal) else None,
            num_unequal=len(unequal),
        )
    return found


def format_rewards(
    texts: Sequence[Sequence[str]], rewards: Sequence[Sequence[float | None]]
) -> dict[str, Interval]:
    """How much higher a reward is for completions with a format than for others of the same prompt: means of the two
    kinds, their difference averaged over the prompts that have both. Formats without two such prompts are left out.
    """
    found = {}
    for name in STYLES:
        gaps = []
        for ones, values in zip(texts, rewards, strict=True):
            sides: dict[bool, list[float]] = {True: [], False: []}
            for text, value in zip(ones, values, strict=True):
                if value is not None:
                    sides[has_format(text, name)].append(value)
            if sides[True] and sides[False]:
                gaps.append(float(np.mean(sides[True]) - np.mean(sides[False])))
        if len(gaps) > 1:
            found[name] = mean_interval(gaps)
    return found
