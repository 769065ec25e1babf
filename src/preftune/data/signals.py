"""Pairs, labels, rewards or hybrid rows from whatever the records know. Pure.

A completion that plays no part in the signal is removed; a record that yields nothing is dropped and counted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Protocol, get_args, runtime_checkable

from preftune.data.options import Pairing
from preftune.data.record_file import Places
from preftune.data.record_signals import (
    UNLABELLED,
    Making,
    SignalName,
    find_signal,
    made_for,
    source_of,
    with_signal,
)
from preftune.errors import ConfigError, DataError
from preftune.types import SOURCES, Record


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
    the policy's completions that are in none; every record must state who wrote its completions. Where
    completions of one prompt must be compared and are in several records, these are merged first; the
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
        self.making = Making(pairing=pairing, min_gap=min_gap, temperature=soft_label_temperature)
        self.soft = False
        self._sources, self._dropped, self._left_out, self._labels = (
            Counter(),
            Counter(),
            Counter(),
            Counter(),
        )
        self._counts = Counter()
        self._unwritten = ""  # origin of the first record that does not state who wrote its completions
        self._places = Places()

    def add(self, record: Record) -> None:
        """One more record, in order."""
        source = source_of(record, self.signal)
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
        found = find_signal(record, self.signal, self.making)
        result = with_signal(record, self.signal, found)
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
        f"{origin}: the row does not state who wrote its completions",
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
        found = ((record, find_signal(record, signal, Making())) for record in merge(records, signal))
        return any(with_signal(record, signal, what) is not None for record, what in found)

    return tuple(signal for signal in get_args(SignalName) if gives(signal))


# --- which source, which records together ---


def _check_applies(sources: Counter[str], signal: SignalName, making: Making) -> None:
    """Options that state what becomes of rewards are an error where no rewards are turned into what they speak
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
        if (signal if soft else made_for(signal)) not in speaks_of or not sources["rewards"]:
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
        source = source_of(record, signal)
        alone = _stays_alone(record, signal, source)
        order.setdefault(index if alone else (source, record.identity), []).append(record)
    return [_joined(group) if len(group) > 1 else group[0] for group in order.values()]


def _stays_alone(record: Record, signal: SignalName, source: str) -> bool:
    return source in (made_for(signal), "nothing") if source != "rewards" else len(record.completions) > 1


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


def _nothing_left(records: Sequence[Record], signal: SignalName, dropped: Mapping[str, int]) -> DataError:
    reasons = ", ".join(f"{count} records: {reason}" for reason, count in dropped.items()) or "no records"
    others = ", ".join(available_signals(records)) or "none"
    return DataError(
        f"The data give no {signal}",
        got=reasons,
        expected=f"at least one record with {signal}",
        do=_advice(dropped, others),
    )


def _advice(dropped: Mapping[str, int], others: str) -> str:
    if UNLABELLED in dropped:
        return (
            "No column says which completions are good. If all of them are demonstrations, use --rows.format "
            "completions; if a column says it under another name, use --rows.columns label=NAME"
        )
    return f"Signals that these data can give: {others}"
