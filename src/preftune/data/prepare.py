"""From a source to records, and from records to groups that fit, with a count of everything on the way."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from preftune.data.files import RawRow, located
from preftune.data.fit import fit
from preftune.data.formats import DETECTION_ROWS, FORMATS, Drop, Format, detect
from preftune.data.options import DataOptions
from preftune.data.read import read_rows
from preftune.data.render import make_renderer
from preftune.data.signals import SignalName, SignalReport, derive
from preftune.errors import ConfigError, DataError, storage_error
from preftune.types import Group, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that was skipped because it cannot be used, and why."""

    file: str
    row: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecords:
    """The records of a source and what became of its other rows."""

    records: tuple[Record, ...]
    format: str
    num_rows: int
    bad_rows: tuple[BadRow, ...]
    dropped: Mapping[str, int]  # rows in order that carry no preference, by reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Quantiles of a number of tokens."""

    min: int
    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """The quantiles of some lengths, each a length that occurs; all 0 if there are none."""
        low, median, high, top = np.quantile(lengths or [0], [0.0, 0.5, 0.95, 1.0], method="higher")
        return cls(min=int(low), median=int(median), p95=int(high), max=int(top))

    def __str__(self) -> str:
        return f"median {self.median}, 95% {self.p95}, longest {self.max}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was read, derived, cut and dropped on the way from a source to its groups."""

    source: str
    format: str
    template: Literal["chat", "plain"]
    num_rows: int
    num_bad: int
    dropped_rows: Mapping[str, int]
    derived: SignalReport | None  # None where the records were taken as they are
    fitted: Mapping[str, int]  # groups by what the length policy did with them
    num_groups: int
    num_completions: int
    num_pairs: int
    num_tokens: int  # prompts once, and all completions
    num_context: int  # completion tokens that are not scored: what the assistant of a trajectory reads
    prompt_tokens: Lengths
    completion_tokens: Lengths
    filtered: Mapping[str, int] = field(default_factory=dict)  # pairs that were left out of training, by reason

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines = [f"{self.source}: {self.num_rows} rows, format {self.format}, {self.template} template"]
        if self.num_bad:
            lines.append(f"skipped {self.num_bad} rows that cannot be used")
        lines += [f"dropped {count} rows: {reason}" for reason, count in self.dropped_rows.items()]
        if self.derived:
            made_of = ", ".join(f"{count} records with {name}" for name, count in self.derived.sources.items())
            joined = f", {self.derived.merged} joined to another of the same prompt" if self.derived.merged else ""
            lines.append(f"{self.derived.signal} from {made_of}{joined}")
            if self.derived.num_samples:
                lines.append(f"{self.derived.num_samples} completions of the policy are in no pair")
            if self.derived.num_soft:
                lines.append(f"{self.derived.num_soft} of {self.derived.num_pairs} pairs have a probability"
                             + (", the others count as certain" * (self.derived.num_soft < self.derived.num_pairs)))
            lines += [f"dropped {count} records: {reason}" for reason, count in self.derived.dropped.items()]
            lines += [f"left out {count} completions: {reason}" for reason, count in self.derived.left_out.items()]
        lines += [f"{count} groups {kind}" for kind, count in self.fitted.items()]
        pairs = f", {self.num_pairs} pairs" if self.num_pairs else ""
        lines.append(f"{self.num_groups} groups, {self.num_completions} completions{pairs}, {self.num_tokens} tokens")
        lines.append(f"prompt tokens: {self.prompt_tokens}")
        if self.num_completions:
            lines.append(f"completion tokens: {self.completion_tokens}")
        if self.num_context:
            lines.append(f"{self.num_context} tokens of trajectories are not the assistant's and are not scored")
        return lines + self.filtered_lines()

    def filtered_lines(self) -> list[str]:
        """What was left out after the groups were made."""
        return [f"left out {count} pairs of training: {reason}" for reason, count in self.filtered.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Groups ready for batches, with the record of each at the same place."""

    groups: tuple[Group, ...]
    records: tuple[Record, ...]
    bad_rows: tuple[BadRow, ...]
    report: DataReport


def write_bad_rows(path: str | Path, bad_rows: Sequence[BadRow]) -> None:
    """One JSON line {file, row, message} for each skipped row."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(bad)) + "\n" for bad in bad_rows)
    except OSError as error:
        raise storage_error("write the list of bad rows", path, error) from error


# --- records ---


def load_records(source: str | Path, options: DataOptions) -> LoadedRecords:
    """All usable rows of a source as records; a bad row stops with an error or is skipped, as the options say."""
    bad: list[BadRow] = []
    records: list[Record] = []
    dropped = Counter()
    rows = _counted(read_rows(str(source), options), num_rows := Counter())
    form, rows = _format_of(str(source), rows, options)
    for row in rows:
        result = _converted(row, form)
        if isinstance(result, Record):
            records.append(result)
        elif isinstance(result, Drop):
            dropped[result.reason] += 1
        else:
            bad.append(_bad_row(row.file, row.number, result, options))
    if not records:
        reasons = [f"{count} rows: {reason}" for reason, count in dropped.items()]
        reasons += [f"{len(bad)} bad rows, the first: {bad[0].message}"] if bad else []
        raise DataError(f"{source}: no row can be used", got="; ".join(reasons),
                        expected=f"rows of the format {form.name}")
    return LoadedRecords(records=tuple(records), format=form.name, num_rows=num_rows["rows"], bad_rows=tuple(bad),
                         dropped=dict(dropped))


def _counted(rows: Iterator[RawRow], count: Counter) -> Iterator[RawRow]:
    for row in rows:
        count["rows"] += 1
        yield row


def _bad_row(file: str, number: int, error: DataError, options: DataOptions) -> BadRow:
    if options.bad_rows == "error":
        raise DataError(f"{error} Set bad_rows to skip to leave such rows out and count them") from error
    return BadRow(file=file, row=number, message=str(error))


def _format_of(source: str, rows: Iterator[RawRow], options: DataOptions) -> tuple[Format, Iterator[RawRow]]:
    """The format that was asked for or that the first good rows have, and all rows."""
    if options.format != "auto":
        return FORMATS[options.format], rows
    seen: list[RawRow] = []
    good: list[dict] = []
    for row in rows:
        seen.append(row)
        if isinstance(row.value, DataError):
            _bad_row(row.file, row.number, row.value, options)
        else:
            good.append(row.value)
        if len(good) == DETECTION_ROWS:
            break
    if not good:
        first = seen[0].value
        raise DataError(f"{source}: no row can be read; {len(seen)} bad rows, the first: {first}")
    try:
        return detect(good), chain(seen, rows)
    except DataError as error:
        raise located(source, 1, error) from error


def _converted(row: RawRow, form: Format) -> Record | Drop | DataError:
    if isinstance(row.value, DataError):
        return row.value
    try:
        result = form.convert(row.value)
    except DataError as error:
        return located(row.file, row.number, error)
    return replace(result, origin=f"{row.file}:{row.number}") if isinstance(result, Record) else result


# --- groups ---


def prepare(
    source: str | Path, tokenizer: PreTrainedTokenizerBase, signal: SignalName | Literal["prompts"] | None,
    options: DataOptions,
) -> Prepared:
    """The groups of a source with exactly this signal; "prompts" without completions, None as the records are."""
    loaded = load_records(source, options)
    records, derived = _with_signal(loaded.records, signal, options)
    renderer = make_renderer(tokenizer, options.template)
    bad = list(loaded.bad_rows)
    groups, kept, fitted = [], [], Counter()
    for record, group in zip(records, renderer.render_all(records), strict=True):
        if isinstance(group, DataError):
            file, _, number = record.origin.rpartition(":")
            bad.append(_bad_row(file, int(number), group, options))
            continue
        result = fit(group, max_length=options.max_length, truncation=options.truncation, bos=renderer.bos)
        fitted[result.kind] += 1
        if result.group is not None:
            groups.append(result.group)
            kept.append(record)
    if not groups:
        got = ", ".join(f"{count} groups {kind}" for kind, count in fitted.items()) or f"{len(bad)} bad rows"
        raise DataError(f"{source}: no group is left", got=got,
                        expected=f"groups of at most {options.max_length} tokens",
                        do="Raise max_length, or choose another truncation" if fitted else f"First: {bad[0].message}")
    report = _report(str(source), loaded, derived, groups, fitted, len(bad), renderer.mode)
    return Prepared(groups=tuple(groups), records=tuple(kept), bad_rows=tuple(bad), report=report)


def prompt_only(record: Record) -> Record:
    """The record's prompt and other columns, without completions and what is known of them."""
    return replace(record, completions=(), pairs=(), probabilities=(), labels=(), rewards=(), ended=(), sources=())


def _with_signal(
    records: tuple[Record, ...], signal: SignalName | Literal["prompts"] | None, options: DataOptions
) -> tuple[tuple[Record, ...], SignalReport | None]:
    if signal is not None and signal != "prompts":
        return derive(records, signal, pairing=options.pairing, min_gap=options.min_gap,
                      soft_label_temperature=options.soft_label_temperature)
    if options.pairing != "all" or options.min_gap > 0 or options.soft_label_temperature is not None:
        raise ConfigError("The data options pairing, min_gap and soft_label_temperature have no effect here",
                          got=f"signal {signal}", expected="pairs or labels made of rewards", do="Leave them out")
    if signal == "prompts":
        return tuple(map(prompt_only, records)), None
    return records, None


def _report(
    source: str, loaded: LoadedRecords, derived: SignalReport | None, groups: Sequence[Group],
    fitted: Mapping[str, int], num_bad: int, mode: Literal["chat", "plain"],
) -> DataReport:
    prompts = [len(group.prompt) for group in groups]
    completions = [len(ids) for group in groups for ids in group.completions]
    return DataReport(
        source=source, format=loaded.format, template=mode, num_rows=loaded.num_rows, num_bad=num_bad,
        dropped_rows=loaded.dropped, derived=derived, fitted=dict(fitted), num_groups=len(groups),
        num_completions=len(completions), num_pairs=sum(len(group.pairs) for group in groups),
        num_tokens=sum(prompts) + sum(completions),
        num_context=sum(completions) - sum(chain.from_iterable(group.num_scored for group in groups)),
        prompt_tokens=Lengths.of(prompts), completion_tokens=Lengths.of(completions),
    )
