"""Thresholds of the measures of a data set, each with its reason, and the findings that they lead to. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

DataVerdict = Literal["good", "check", "fix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The verdict is "check" above `check` and "fix" from `fix` on; None: never."""

    check: float
    fix: float | None
    reason: str

    def verdict(self, value: float, mildest: float | None = None) -> DataVerdict:
        """`mildest` is the end of the number's interval that is nearest to good: for "fix" it lies beyond
        `check`, too.
        """
        certain = mildest is None or mildest > self.check
        if self.fix is not None and value >= self.fix and certain:
            return "fix"
        return "check" if value > self.check else "good"


BOUNDS: Mapping[str, Bound] = {
    "unusable_rows": Bound(
        check=0.0, fix=0.05, reason="share of rows; a few are typing errors, many are a wrong export"
    ),
    "fault_rows": Bound(
        check=0.0, fix=0.01, reason="share of rows; a model learns a fault that is in 1% of rows"
    ),
    "open_ends": Bound(
        check=0.05,
        fix=None,
        reason="share of rows; people also omit the final period, so the verdict is never fix",
    ),
    "idle_pairs": Bound(check=0.0, fix=0.05, reason="share of pairs; they cost time and teach nothing"),
    "duplicates": Bound(
        check=0.01, fix=0.10, reason="share of rows; a repeated row has more weight than intended"
    ),
    "leakage": Bound(
        check=0.0, fix=0.01, reason="share of held-out rows; they bias the held-out metrics upwards"
    ),
    "overlap": Bound(
        check=0.7, fix=None, reason="share of tokens; most of a pair then moves up and down at once"
    ),
    "near_identical": Bound(
        check=0.05, fix=0.25, reason="share of pairs; their likelihoods may fall together"
    ),
    "length_bias": Bound(
        check=0.1, fix=0.25, reason="P(chosen longer) from 1/2; at 3 of 4, length dominates what is learned"
    ),
    "format_bias": Bound(
        check=0.1, fix=0.25, reason="share of chosen less share of rejected completions with the format"
    ),
    "contradictions": Bound(
        check=0.0, fix=0.05, reason="share of exchanged pairs, estimated from repeated judgments"
    ),
    "noise": Bound(
        check=0.4, fix=None, reason="1 - agreement; an upper estimate, so the verdict is never fix"
    ),
    "strong": Bound(
        check=0.5,
        fix=None,
        reason="share of pairs fitted above 0.99 or below 0.01; what a Bradley-Terry model concludes from such "
        "probabilities for other pairs is sensitive to small errors",
    ),
    "noise_variance": Bound(
        check=0.1,
        fix=None,
        reason="agreement lost with 30% of the labels exchanged; more pairs would lose less",
    ),
    "off_policy": Bound(check=0.3, fix=None, reason="nats per token; a factor of e^0.3 = 1.35 in perplexity"),
    "best_of_data": Bound(
        check=0.9,
        fix=None,
        reason="probability; fewer than one own sample in ten is as good as the data's best",
    ),
    "zero_spread": Bound(
        check=0.25, fix=0.5, reason="share of prompts; group methods learn nothing from them"
    ),
    "reward_disagreement": Bound(
        check=0.4, fix=0.5, reason="share of pairs that the reward orders the other way; 1/2 is chance"
    ),
}
"""The thresholds are choices, with their reasons; docs/data_diagnosis.md has the table."""


def bounds_used() -> dict[str, dict[str, object]]:
    """The thresholds as plain values."""
    return {name: {"check": one.check, "fix": one.fix, "reason": one.reason} for name, one in BOUNDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """One line of the diagnosis."""

    name: str
    measured: str
    verdict: DataVerdict
    meaning: str


def text_for(verdict: DataVerdict, good: str, bad: str) -> str:
    return good if verdict == "good" else bad


def count_verdicts(found: Sequence[DataFinding]) -> Mapping[DataVerdict, int]:
    """How many findings have each verdict, the worst first."""
    order: tuple[DataVerdict, ...] = ("fix", "check", "good")
    return {verdict: sum(one.verdict == verdict for one in found) for verdict in order}
