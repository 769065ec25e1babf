"""Pairs, labels, rewards or hybrid rows from whatever the records know. Pure.

A completion that plays no part in the signal is removed; a record that yields nothing is dropped and counted.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, permutations
from typing import Literal, Protocol, get_args, runtime_checkable

from preftune.data.options import Pairing
from preftune.data.record_file import Places
from preftune.errors import ConfigError, DataError
from preftune.types import SOURCES, Completion, Record

SignalName = Literal["pairs", "labels", "rewards", "hybrid"]
_ORDER = {
    "pairs": ("pairs", "rewards", "labels"),
    "labels": ("labels", "rewards", "pairs"),
    "rewards": ("rewards", "labels", "pairs"),
}  # what a signal is made of, the best first
_EQUAL = 1e-9  # of the spread of a group: a reward so near the mean is on neither side of it


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReport:
    """What `derive` made and what it left out, with the reasons."""

    signal: SignalName
    sources: Mapping[str, int]  # records by what the signal was made of
    merged: int  # records that joined another one with the same prompt
    dropped: Mapping[str, int]  # records by reason
    left_out: Mapping[str, int]  # completions of the records that stay, by reason
    num_pairs: int
    num_samples: int  # completions of the policy in no pair, for the signal hybrid
    num_soft: int  # pairs whose probability the data give or that got one from rewards
    num_preferred: int  # completions labeled +1
    num_dispreferred: int  # completions labeled -1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """How rewards become pairs or labels."""

    pairing: Pairing = "all"
    min_gap: float = 0.0
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one record yields: pairs, or a value for some of its completions; or why nothing."""

    pairs: tuple[tuple[int, int], ...] = ()
    probabilities: tuple[float, ...] = ()  # one per pair, or none
    values: tuple[int | float | None, ...] = ()
    reason: str = ""  # why nothing was found
    left_out: str = "no part in the signal"  # why completions without a part have none


def derive(
    records: Sequence[Record],
    signal: SignalName,
    *,
    pairing: Pairing = "all",
    min_gap: float = 0.0,
    soft_label_temperature: float | None = None,
) -> tuple[tuple[Record, ...], SignalReport]:
    """Records that hold exactly the signal, and what became of the others.

    Pairs come from pairs, else from rewards (gap above 0 and at least `min_gap`; ties are no preference),
    else from labels (every +1 against every -1). Labels come from labels, else from rewards (under "all"
    above the mean of the prompt against below it, under "best_worst" only these two), else from pairs.
    Rewards come from rewards, else from labels (1 and 0), else from pairs (1 and 0). Hybrid is the pairs, and
    the policy's completions that are in none; every record must say who wrote its completions. Where
    completions of one prompt must be compared and stand in several records, these are merged first; the
    merged record keeps the first one's origin and columns.

    A pair has a probability if its record gives one, or by `soft_label_temperature` if it is made of rewards.
    Where some pairs have one, the others get 1; so either all records have probabilities or none, however a
    step is cut.
    """
    derivation = Derivation(
        signal, pairing=pairing, min_gap=min_gap, soft_label_temperature=soft_label_temperature
    )
    for record in records:
        derivation.add(record)
    kept = list(derivation.derived(records))
    return tuple(_certain_elsewhere(kept)), derivation.report()


class Derivation:
    """`derive` for records that do not fit in memory: `add` tells of each record, `derived` then takes them
    one by one.

    What is left to do with its records is `_certain_elsewhere`, if any of them has a probability (`soft`):
    whether one has is known at the end.
    """

    def __init__(
        self,
        signal: SignalName,
        *,
        pairing: Pairing = "all",
        min_gap: float = 0.0,
        soft_label_temperature: float | None = None,
    ) -> None:
        self.signal: SignalName = signal
        self.making = _Making(pairing=pairing, min_gap=min_gap, temperature=soft_label_temperature)
        self.soft = False
        self._sources, self._dropped, self._left_out, self._labels = (
            Counter(),
            Counter(),
            Counter(),
            Counter(),
        )
        self._counts = Counter()
        self._unwritten = ""  # origin of the first record that does not say who wrote its completions
        self._places = Places()

    def add(self, record: Record) -> None:
        """One more record, in order."""
        source = _source(record, self.signal)
        self._sources[source] += 1
        self._counts["records"] += 1
        self._places.add(None if _stays_alone(record, self.signal, source) else source, record)
        if self.signal == "hybrid" and not self._unwritten and len(record.sources) != len(record.completions):
            self._unwritten = record.origin

    def derived(self, records: "Indexed") -> Iterator[Record]:
        """The records that hold the signal; `records` gives those that were added, by number."""
        if self._unwritten:
            raise _not_written(self._unwritten)
        _check_applies(self._sources, self.signal, self.making)
        members, ends = self._places.groups()
        for start, end in pairwise(chain([0], ends)):
            group = [records[index] for index in members[start:end].tolist()]
            result = self._one(_joined(group) if len(group) > 1 else group[0])
            self._counts["merged"] += len(group) - 1
            if result is not None:
                yield result
        if not self._counts["kept"]:
            raise _nothing_left([records[index] for index in range(len(records))], self.signal, self._dropped)

    def _one(self, record: Record) -> Record | None:
        found = _find(record, self.signal, self.making)
        result = _with_signal(record, self.signal, found)
        if result is None:
            self._dropped[found.reason] += 1
            return None
        reason = "in no pair, and not the policy's" if self.signal == "hybrid" else found.left_out
        self._left_out[reason] += len(record.completions) - len(result.completions)
        self._counts["kept"] += 1
        self._counts["pairs"] += len(result.pairs)
        self._counts["probabilities"] += len(result.probabilities)
        self._counts["samples"] += _num_samples(result) if self.signal == "hybrid" else 0
        self._labels.update(result.labels)
        self.soft = self.soft or bool(result.probabilities)
        return result

    def report(self) -> SignalReport:
        """What was made, once all records are derived."""
        return SignalReport(
            signal=self.signal,
            sources=dict(self._sources),
            merged=self._counts["merged"],
            dropped=dict(self._dropped),
            left_out={reason: count for reason, count in self._left_out.items() if count},
            num_pairs=self._counts["pairs"],
            num_samples=self._counts["samples"],
            num_soft=self._counts["probabilities"],
            num_preferred=self._labels[1],
            num_dispreferred=self._labels[-1],
        )


@runtime_checkable
class Indexed(Protocol):
    """Records by number, in memory or elsewhere."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def _not_written(origin: str) -> DataError:
    return DataError(
        f"{origin}: the row does not say who wrote its completions",
        got="no column sources",
        expected="one of " + ", ".join(SOURCES) + " for each completion",
        do="Write rows of prompt, completions, pairs and sources",
    )


def _num_samples(record: Record) -> int:
    return len(record.completions) - len({k for pair in record.pairs for k in pair})


def _certain_elsewhere(records: Sequence[Record]) -> Sequence[Record]:
    """The records as they are if none has probabilities; else those without get 1 for each pair."""
    if not any(record.probabilities for record in records):
        return records
    return [
        replace(record, probabilities=record.probabilities or (1.0,) * len(record.pairs))
        for record in records
    ]


def available_signals(records: Sequence[Record]) -> tuple[SignalName, ...]:
    """The signals that `derive` can make of these records."""

    def gives(signal: SignalName) -> bool:
        if signal == "hybrid" and any(len(record.sources) != len(record.completions) for record in records):
            return False
        found = ((record, _find(record, signal, _Making())) for record in merge(records, signal))
        return any(_with_signal(record, signal, what) is not None for record, what in found)

    return tuple(signal for signal in get_args(SignalName) if gives(signal))


# --- which source, which records together ---


def _source(record: Record, signal: SignalName) -> str:
    for name in _ORDER[_made(signal)]:
        known = {"pairs": record.pairs, "labels": record.labels, "rewards": record.rewards}[name]
        if known and (name == "pairs" or any(value is not None for value in known)):
            return name
    return "nothing"


def _made(signal: SignalName) -> Literal["pairs", "labels", "rewards"]:
    """What must be made for a signal: pairs for hybrid."""
    return "pairs" if signal == "hybrid" else signal


def _check_applies(sources: Counter[str], signal: SignalName, making: _Making) -> None:
    """Options that say what becomes of rewards are an error where no rewards are turned into what they speak
    of.
    """
    given = {
        "pairing": making.pairing != "all",
        "min_gap": making.min_gap > 0,
        "soft_label_temperature": making.temperature is not None,
    }
    for option in (name for name, is_given in given.items() if is_given):
        soft = option == "soft_label_temperature"
        speaks_of = ("pairs",) if soft else ("pairs", "labels")
        if (signal if soft else _made(signal)) not in speaks_of or not sources["rewards"]:
            made_of = ", ".join(name for name in sources if name != "nothing") or "nothing"
            raise ConfigError(
                f"The data option {option} has no effect here",
                got=f"{signal} made of {made_of}",
                expected=" or ".join(speaks_of) + " made of rewards",
                do=f"Leave {option} out, or give data with rewards",
            )


def merge(records: Sequence[Record], signal: SignalName) -> list[Record]:
    """Records with records of the same prompt joined, where the signal compares completions across them.

    Pairs are never joined to make pairs, nor labels to make labels. Rewards are joined only when each record
    has one
    completion: the rewards (or ranks) of a group are comparable within the group only.
    """
    order: dict[object, list[Record]] = {}
    for index, record in enumerate(records):
        source = _source(record, signal)
        alone = _stays_alone(record, signal, source)
        order.setdefault(index if alone else (source, record.identity), []).append(record)
    return [_joined(group) if len(group) > 1 else group[0] for group in order.values()]


def _stays_alone(record: Record, signal: SignalName, source: str) -> bool:
    return source in (_made(signal), "nothing") if source != "rewards" else len(record.completions) > 1


def _joined(group: Sequence[Record]) -> Record:
    start, pairs, probabilities, labels, rewards = 0, [], [], [], []
    for record in _certain_elsewhere(group):
        probabilities += record.probabilities
        pairs += [(chosen + start, rejected + start) for chosen, rejected in record.pairs]
        labels += record.labels
        rewards += record.rewards
        start += len(record.completions)
    completions = tuple(completion for record in group for completion in record.completions)
    ended = tuple(flag for record in group for flag in record.ended or (True,) * len(record.completions))
    sources = tuple(source for record in group for source in record.sources)
    return replace(
        group[0],
        completions=completions,
        pairs=tuple(pairs),
        probabilities=tuple(probabilities),
        labels=tuple(labels),
        rewards=tuple(rewards),
        ended=() if all(ended) else ended,
        sources=sources if len(sources) == len(completions) else (),
    )


# --- what one record yields ---


def _find(record: Record, signal: SignalName, making: _Making) -> _Found:
    source = _source(record, signal)
    if source == "nothing":
        return _Found(reason="no completions" if not record.completions else "no signal")
    if signal == "pairs":
        return _find_pairs(record, source, making)
    if signal == "hybrid":
        return replace(_find_pairs(record, source, making), probabilities=())
    if signal == source:
        return _Found(
            values=record.labels if signal == "labels" else record.rewards, left_out=f"no {signal[:-1]}"
        )
    if source == "rewards":
        return _labels_of_rewards(record, making)
    found = _unified_labels(record, _labels_of_pairs(record) if source == "pairs" else record.labels)
    if signal == "labels":
        return found
    return replace(found, values=tuple(None if label is None else float(label > 0) for label in found.values))


def _find_pairs(record: Record, source: str, making: _Making) -> _Found:
    if source == "pairs":
        return _told_apart(record, record.pairs, record.probabilities, "chosen and rejected are equal")
    if source == "labels":
        labels = _unified_labels(record, record.labels).values
        preferred, dispreferred = ([k for k, label in enumerate(labels) if label == sign] for sign in (1, -1))
        pairs = tuple((chosen, rejected) for chosen in preferred for rejected in dispreferred)
        return _told_apart(record, pairs, (), "only one label for the prompt")
    known = _known_rewards(record)
    reason = _why_no_gap(known, making.min_gap)
    if reason:
        return _Found(reason=reason)
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


def _told_apart(
    record: Record, pairs: Sequence[tuple[int, int]], probabilities: Sequence[float], reason: str
) -> _Found:
    """The pairs whose two texts differ, each with its probability if there are any."""
    texts = record.completions
    keep = [p for p, (i, j) in enumerate(pairs) if texts[i] != texts[j]]
    return _Found(
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


def _labels_of_rewards(record: Record, making: _Making) -> _Found:
    known = _known_rewards(record)
    reason = _why_no_gap(known, making.min_gap)
    if reason:
        return _Found(reason=reason)
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
    """+1 where only ever chosen, -1 where only ever rejected; by text, as one text may stand in several
    pairs.
    """
    chosen = {record.completions[i] for i, _ in record.pairs}
    rejected = {record.completions[j] for _, j in record.pairs}
    label = {
        text: None if (text in chosen) == (text in rejected) else 1 if text in chosen else -1
        for text in record.completions
    }
    return [label[text] for text in record.completions]


def _unified_labels(record: Record, labels: Sequence[int | None]) -> _Found:
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
    return _Found(
        values=tuple(values),
        reason="every completion is both chosen and rejected",
        left_out="a repeated text, or both chosen and rejected",
    )


# --- the record with its signal ---


def _with_signal(record: Record, signal: SignalName, found: _Found) -> Record | None:
    """The record with this signal only and the completions that take part in it; None if there are none."""
    if _made(signal) == "pairs":
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
        getattr(record, name) == value for name, value in known.items()
    ):
        return record
    return replace(
        record,
        completions=tuple(record.completions[k] for k in keep),
        ended=tuple(record.ended[k] for k in keep) if record.ended else (),
        **known,
    )


def _nothing_left(records: Sequence[Record], signal: SignalName, dropped: Mapping[str, int]) -> DataError:
    reasons = ", ".join(f"{count} records: {reason}" for reason, count in dropped.items()) or "no records"
    others = ", ".join(available_signals(records)) or "none"
    return DataError(
        f"The data give no {signal}",
        got=reasons,
        expected=f"at least one record with {signal}",
        do=f"Signals that these data can give: {others}",
    )
