"""Thresholds of the measures of a data set, each with its reason, and the findings that they lead to. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

DataVerdict = Literal["good", "look at this", "mend this"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A number above `look` wants a look, from `mend` on it wants mending; None never does."""

    look: float
    mend: float | None
    reason: str

    def verdict(self, value: float, mildest: float | None = None) -> DataVerdict:
        """`mildest` is the end of the number's interval that says least: what is to be mended lies beyond
        `look` there, too.
        """
        certain = mildest is None or mildest > self.look
        if self.mend is not None and value >= self.mend and certain:
            return "mend this"
        return "look at this" if value > self.look else "good"


BOUNDS: Mapping[str, Bound] = {
    "unusable_rows": Bound(
        look=0.0, mend=0.05, reason="share of rows; a few are typing errors, many are a wrong export"
    ),
    "fault_rows": Bound(
        look=0.0, mend=0.01, reason="share of rows; what stands in one row of a hundred is learned"
    ),
    "open_ends": Bound(
        look=0.05, mend=None, reason="share of rows; people, too, leave out a full stop, so it never condemns"
    ),
    "idle_pairs": Bound(look=0.0, mend=0.05, reason="share of pairs; they cost time and teach nothing"),
    "duplicates": Bound(
        look=0.01, mend=0.10, reason="share of rows; a repeated row has more weight than its author meant"
    ),
    "leakage": Bound(
        look=0.0, mend=0.01, reason="share of held-out rows; the held-out figure is too good by as much"
    ),
    "overlap": Bound(
        look=0.7, mend=None, reason="share of tokens; most of a pair then moves up and down at once"
    ),
    "near_identical": Bound(
        look=0.05, mend=0.25, reason="share of pairs; their likelihoods may fall together"
    ),
    "length_bias": Bound(
        look=0.1, mend=0.25, reason="P(chosen longer) from 1/2; at 3 of 4, length is most of the lesson"
    ),
    "contradictions": Bound(
        look=0.0, mend=0.05, reason="share of exchanged pairs, as their repetitions tell"
    ),
    "noise": Bound(look=0.4, mend=None, reason="1 - agreement; an upper estimate, so it never condemns"),
    "off_policy": Bound(look=0.3, mend=None, reason="nats per token; a factor of e^0.3 = 1.35 in perplexity"),
    "best_of_data": Bound(
        look=0.9, mend=None, reason="chance; fewer than one own sample in ten is as good as the data's best"
    ),
    "zero_spread": Bound(
        look=0.25, mend=0.5, reason="share of prompts; group methods learn nothing from them"
    ),
    "reward_disagreement": Bound(
        look=0.4, mend=0.5, reason="share of pairs that the reward orders the other way; 1/2 is a coin"
    ),
}
"""The thresholds are choices, with their reasons; docs/data_diagnosis.md says more."""


def bounds_used() -> dict[str, dict[str, object]]:
    """The thresholds as plain values."""
    return {name: {"look": one.look, "mend": one.mend, "reason": one.reason} for name, one in BOUNDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """One line of the diagnosis."""

    name: str
    measured: str
    verdict: DataVerdict
    says: str


def text_for(verdict: DataVerdict, good: str, bad: str) -> str:
    return good if verdict == "good" else bad


def count_verdicts(found: Sequence[DataFinding]) -> Mapping[DataVerdict, int]:
    """How many findings have each verdict, the worst first."""
    order: tuple[DataVerdict, ...] = ("mend this", "look at this", "good")
    return {verdict: sum(one.verdict == verdict for one in found) for verdict in order}
