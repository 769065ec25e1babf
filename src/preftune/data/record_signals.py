"""What one record yields for a signal: pairs, labels or rewards, from whatever it knows. Pure."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

from preftune.data.options import Pairing
from preftune.errors import DataError
from preftune.types import Completion, Record

SignalName = Literal["pairs", "labels", "rewards", "hybrid"]
_ORDER = {
    "pairs": ("pairs", "rewards", "labels"),
    "labels": ("labels", "rewards", "pairs"),
    "rewards": ("rewards", "labels", "pairs"),
}  # what a signal is made of, the best first
MAX_PAIRS = 100_000  # of one prompt
UNLABELLED = "unlabelled completions"
_EQUAL = 1e-9  # of the spread of a group: a reward so near the mean is on neither side of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How rewards become pairs or labels."""

    pairing: Pairing = "all"
    min_gap: float = 0.0
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one record yields: pairs, or a value for some of its completions; or why nothing."""

    pairs: tuple[tuple[int, int], ...] = ()
    probabilities: tuple[float, ...] = ()  # one per pair, or none
    values: tuple[int | float | None, ...] = ()
    reason: str = ""  # why nothing was found
    left_out: str = "no part in the signal"  # why completions without a part have none


def source_of(record: Record, signal: SignalName) -> str:
    for name in _ORDER[made_for(signal)]:
        known = {"pairs": record.pairs, "labels": record.labels, "rewards": record.rewards}[name]
        if known and (name == "pairs" or any(value is not None for value in known)):
            return name
    return "nothing"


def made_for(signal: SignalName) -> Literal["pairs", "labels", "rewards"]:
    """What must be made for a signal: pairs for hybrid."""
    return "pairs" if signal == "hybrid" else signal


def find_signal(record: Record, signal: SignalName, making: Making) -> Found:
    source = source_of(record, signal)
    if source == "nothing":
        return Found(reason=_why_nothing(record))
    if signal == "pairs":
        return _find_pairs(record, source, making)
    if signal == "hybrid":
        return replace(_find_pairs(record, source, making), probabilities=())
    if signal == source:
        return Found(
            values=record.labels if signal == "labels" else record.rewards, left_out=f"no {signal[:-1]}"
        )
    if source == "rewards":
        return _labels_of_rewards(record, making)
    found = _unified_labels(record, _labels_of_pairs(record) if source == "pairs" else record.labels)
    if signal == "labels":
        return found
    return replace(found, values=tuple(None if label is None else float(label > 0) for label in found.values))


def _why_nothing(record: Record) -> str:
    if not record.completions:
        return "no completions"
    if record.labels:
        return "neutral labels"
    return "rewards that are not known" if record.rewards else UNLABELLED


def _find_pairs(record: Record, source: str, making: Making) -> Found:
    if source == "pairs":
        return _told_apart(record, record.pairs, record.probabilities, "chosen and rejected are equal")
    if source == "labels":
        labels = _unified_labels(record, record.labels).values
        preferred, dispreferred = ([k for k, label in enumerate(labels) if label == sign] for sign in (1, -1))
        _check_number(record, len(preferred) * len(dispreferred), "labels")
        pairs = tuple((chosen, rejected) for chosen in preferred for rejected in dispreferred)
        return _told_apart(record, pairs, (), "only one label for the prompt")
    known = _known_rewards(record)
    reason = _why_no_gap(known, making.min_gap)
    if reason:
        return Found(reason=reason)
    if making.pairing == "all":
        _check_number(record, _num_pairs(list(known.values()), making.min_gap), "rewards")
    pairs = [_best_worst(known)] if making.pairing == "best_worst" else list(permutations(known, 2))
    gaps = {(i, j): known[i] - known[j] for i, j in pairs}
    gaps = {pair: gap for pair, gap in gaps.items() if gap > 0 and gap >= making.min_gap}
    scale = making.temperature
    probabilities = () if scale is None else tuple(1 / (1 + math.exp(-gap / scale)) for gap in gaps.values())
    reason = (
        "best and worst are equal texts"
        if making.pairing == "best_worst"
        else "equal texts with different rewards"
    )
    return _told_apart(record, tuple(gaps), probabilities, reason)


def _num_pairs(rewards: Sequence[float], min_gap: float) -> int:
    """How many ordered pairs of rewards have a gap above 0 and of at least `min_gap`; n log n."""
    ordered = sorted(rewards)
    if min_gap > 0:
        return sum(bisect_right(ordered, reward - min_gap) for reward in ordered)
    return sum(bisect_left(ordered, reward) for reward in ordered)


def _check_number(record: Record, number: int, source: str) -> None:
    """One prompt must not give more pairs than can be trained on: their number grows with the square."""
    if number > MAX_PAIRS:
        raise DataError(
            f"{record.origin}: the {len(record.completions)} completions of one prompt give too many pairs",
            got=f"{number:,} pairs made of {source}",
            expected=f"at most {MAX_PAIRS:,} pairs of one prompt",
            do="Use --rows.pairing best_worst, or a larger --rows.min_gap"
            if source == "rewards"
            else "Use an objective that learns from labels, or give fewer completions of this prompt",
        )


def _told_apart(
    record: Record, pairs: Sequence[tuple[int, int]], probabilities: Sequence[float], reason: str
) -> Found:
    """The pairs whose two texts differ, each with its probability if there are any."""
    texts = record.completions
    keep = [p for p, (i, j) in enumerate(pairs) if texts[i] != texts[j]]
    return Found(
        pairs=tuple(pairs[p] for p in keep),
        reason=reason,
        left_out="in no pair",
        probabilities=tuple(probabilities[p] for p in keep) if probabilities else (),
    )


def _known_rewards(record: Record) -> dict[int, float]:
    return {k: reward for k, reward in enumerate(record.rewards) if reward is not None}


def _best_worst(known: Mapping[int, float]) -> tuple[int, int]:
    return max(known, key=lambda k: known[k]), min(known, key=lambda k: known[k])


def _why_no_gap(known: Mapping[int, float], min_gap: float) -> str:
    if len(known) < 2:
        return "a single reward for the prompt"
    spread = max(known.values()) - min(known.values())
    if spread == 0:
        return "tie: all rewards are equal"
    return "largest reward gap below min_gap" if spread < min_gap else ""


def _labels_of_rewards(record: Record, making: Making) -> Found:
    known = _known_rewards(record)
    reason = _why_no_gap(known, making.min_gap)
    if reason:
        return Found(reason=reason)
    labels: list[int | None] = [None] * len(record.completions)
    if making.pairing == "best_worst":
        best, worst = _best_worst(known)
        labels[best], labels[worst] = 1, -1
        return replace(_unified_labels(record, labels), left_out="neither best nor worst")
    mean = math.fsum(known.values()) / len(known)
    equal = _EQUAL * (max(known.values()) - min(known.values()))
    for k, reward in known.items():
        labels[k] = None if abs(reward - mean) <= equal else 1 if reward > mean else -1
    return replace(_unified_labels(record, labels), left_out="reward equal to the mean, or a contradiction")


def _labels_of_pairs(record: Record) -> list[int | None]:
    """+1 where only ever chosen, -1 where only ever rejected; by text, as one text may be in several
    pairs.
    """
    chosen = {record.completions[i] for i, _ in record.pairs}
    rejected = {record.completions[j] for _, j in record.pairs}
    label = {
        text: None if (text in chosen) == (text in rejected) else 1 if text in chosen else -1
        for text in record.completions
    }
    return [label[text] for text in record.completions]


def _unified_labels(record: Record, labels: Sequence[int | None]) -> Found:
    """Each text once; a text with both labels gets none."""
    signs: dict[Completion, set[int]] = {}
    for text, label in zip(record.completions, labels, strict=True):
        if label is not None:
            signs.setdefault(text, set()).add(label)
    values: list[int | float | None] = []
    for text, label in zip(record.completions, labels, strict=True):
        once = label is not None and len(signs.get(text, ())) == 1
        values.append(label if once else None)
        if once:
            signs[text] = set()
    return Found(
        values=tuple(values),
        reason="every completion is both chosen and rejected",
        left_out="a repeated text, or both chosen and rejected",
    )


# --- the record with its signal ---


def _is_whole(record: Record, found: Found) -> bool:
    """Whether a record holds the pairs that were found, all of its completions in them, and no other signal."""
    if record.pairs != found.pairs or record.probabilities != found.probabilities:
        return False
    if record.labels or record.rewards or record.sources:
        return False
    return len({k for pair in found.pairs for k in pair}) == len(record.completions) > 0


def with_signal(record: Record, signal: SignalName, found: Found) -> Record | None:
    """The record with this signal only and the completions that take part in it; None if there are none."""
    if signal == "pairs" and _is_whole(record, found):
        return record
    if made_for(signal) == "pairs":
        samples = (
            {k for k, source in enumerate(record.sources) if source == "policy"}
            if signal == "hybrid"
            else set()
        )
        keep = sorted({k for pair in found.pairs for k in pair} | samples)
    else:
        keep = [k for k, value in enumerate(found.values) if value is not None]
    if not keep:
        return None
    place = {k: index for index, k in enumerate(keep)}
    values = [found.values[k] for k in keep] if found.values else []
    known = {
        "pairs": tuple((place[i], place[j]) for i, j in found.pairs),
        "probabilities": found.probabilities,
        "labels": tuple(int(value) for value in values if value is not None) if signal == "labels" else (),
        "rewards": tuple(float(value) for value in values if value is not None)
        if signal == "rewards"
        else (),
        "sources": tuple(record.sources[k] for k in keep) if signal == "hybrid" else (),
    }
    if len(keep) == len(record.completions) and all(
        [getattr(record, name) == value for name, value in known.items()]
    ):
        return record
    return replace(
        record,
        completions=tuple(record.completions[k] for k in keep),
        ended=tuple(record.ended[k] for k in keep) if record.ended else (),
        **known,
    )
