"""From a source to records, and from records to groups that fit, with a count of everything on the way."""

import gc
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from preftune.data.chat_templates import apply_template
from preftune.data.column_account import UNUSED
from preftune.data.data_report import DataReport, Lengths
from preftune.data.fit import fit
from preftune.data.options import DataOptions
from preftune.data.record_file import RecordFile
from preftune.data.records import BadRow, RecordReader, bad_row, load_records, prompt_only
from preftune.data.render import Renderer, make_renderer
from preftune.data.signals import Derivation, SignalName, SignalReport, derive
from preftune.data.store import StoredGroups, StoreWriter, publish, read_meta, scratch_folder
from preftune.data.store_key import stamps, store_key
from preftune.errors import ConfigError, DataError, StorageError, storage_error
from preftune.storage import cache_folder
from preftune.types import Group, Record

Wanted = SignalName | Literal["prompts"] | None
"""The signal that groups are to have; "prompts" without completions, None as the records are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Groups ready for batches. They lie on disk, and each is made when it is requested."""

    groups: Sequence[Group]
    bad_rows: tuple[BadRow, ...]
    report: DataReport
    signal: Wanted
    options: DataOptions

    @property
    def records(self) -> tuple[Record, ...]:
        """The record of each group at the same place. They are read anew from the source each time, and fill
        memory.
        """
        loaded = load_records(self.report.source, self.options, passed=self.signal == "prompts")
        found = {
            record.origin: record for record in _with_signal(loaded.records, self.signal, self.options)[0]
        }
        origins = [group.origin for group in self.groups]
        if not all(origin in found for origin in origins):
            raise DataError(
                f"{self.report.source} has changed since it was read",
                got="other rows",
                expected="the same rows",
                do="Start again",
            )
        return tuple(found[origin] for origin in origins)


# --- groups ---


def prepare(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    signal: Wanted,
    options: DataOptions,
    *,
    columns_passed: bool = False,
) -> Prepared:
    """The groups of a source with exactly this signal.

    They are kept in the cache where it is certain that the next preparation would give the same
    (`store_key`), else in a temporary file. Memory does not grow with the rows except for some bytes of each.
    """
    apply_template(tokenizer, options)
    passed = columns_passed or signal == "prompts"
    key, before = store_key(str(source), tokenizer, signal, options, passed), stamps(str(source))
    folder = None if key is None else cache_folder() / "tokens" / key
    meta = None if folder is None else read_meta(folder)
    if folder is not None and meta is not None:
        groups = _opened(folder, meta["certain"])
        bad = tuple(BadRow(**row) for row in meta["bad_rows"])
        return Prepared(
            groups=groups, bad_rows=bad, report=DataReport.of(meta["report"]), signal=signal, options=options
        )
    scratch, kept = _scratch_for(folder)
    try:
        made = _Maker(str(source), signal, options, scratch, passed)
        with _no_collection():
            report, certain = made.fill(tokenizer)
        groups = _opened(scratch, certain)
        if folder is not None and kept and stamps(str(source)) == before:
            publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Prepared(groups=groups, bad_rows=tuple(made.bad), report=report, signal=signal, options=options)


def _opened(folder: Path, certain: bool) -> StoredGroups:
    try:
        return StoredGroups(folder, certain)
    except OSError as error:
        raise storage_error("read the token store", folder, error) from error


def _scratch_for(folder: Path | None) -> tuple[Path, bool]:
    """(an empty folder, whether it lies where it can be moved to its place in the cache)"""
    if folder is not None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=folder.parent, prefix=".")), True
        except OSError:  # nothing is lost: the next preparation starts anew
            pass
    return scratch_folder(), False


class _Maker:
    """Making a store: all rows are read and wait on disk, then they become groups batch by batch."""

    def __init__(self, source: str, signal: Wanted, options: DataOptions, folder: Path, passed: bool) -> None:
        self.passed = passed
        self.signal: Wanted = signal
        self.source, self.options, self.folder = source, options, folder
        self.bad: list[BadRow] = []

    def fill(self, tokenizer: PreTrainedTokenizerBase) -> tuple[DataReport, bool]:
        """(the report, whether pairs without a probability are certain)"""
        records = RecordFile()
        try:
            writer = StoreWriter(self.folder)
            try:
                return self._fill(tokenizer, records, writer)
            finally:
                writer.close()
        except StorageError:
            raise
        except OSError as error:
            raise storage_error("write the token store", self.folder, error) from error
        finally:
            records.close()

    def _fill(
        self, tokenizer: PreTrainedTokenizerBase, records: RecordFile, writer: StoreWriter
    ) -> tuple[DataReport, bool]:
        options, reader, derivation = (
            self.options,
            RecordReader(self.source, self.options, passed=self.passed),
            self._derivation(),
        )
        for record in reader:
            records.append(record)
            if derivation is not None:
                derivation.add(record)
        records.finish()
        self.bad += reader.bad_rows
        if derivation is None:
            _refuse_making(self.signal, options)
        if derivation is not None and reader.format == "prompts":
            raise _prompts_only(reader, self.signal)
        derived = derivation.derived(records) if derivation is not None else self._as_they_are(records)
        # The first record, because an error of the signal comes before an error of the tokenizer.
        first = next(derived)
        renderer = make_renderer(tokenizer, options, many=True)
        fitted = self._write_groups(renderer, chain([first], derived), writer)
        if not writer.num_groups:
            raise self._empty(fitted)
        report = _report(
            reader,
            None if derivation is None else derivation.report(),
            writer,
            fitted,
            len(self.bad),
            renderer,
        )
        certain = derivation is not None and derivation.soft
        writer.finish(
            {"certain": certain, "bad_rows": [asdict(bad) for bad in self.bad], "report": report.as_dict()}
        )
        return report, certain

    def _write_groups(
        self, renderer: Renderer, records: Iterator[Record], writer: StoreWriter
    ) -> Counter[str]:
        """Write the records as groups of tokens; count how they fit."""
        options, origins, fitted = self.options, deque[str](), Counter[str]()
        for group in renderer.render_all(_noted(records, origins)):
            file, _, number = origins.popleft().rpartition(":")
            if isinstance(group, DataError):
                self.bad.append(bad_row(file, int(number), group, options))
                continue
            result = fit(
                group, max_length=options.max_length, truncation=options.truncation, bos=renderer.bos
            )
            fitted[result.kind] += 1
            if result.group is not None:
                writer.add(result.group)
        return fitted

    def _empty(self, fitted: Mapping[str, int]) -> DataError:
        counts = ", ".join(f"{count} groups {kind}" for kind, count in fitted.items())
        return DataError(
            f"{self.source}: no group is left",
            got=counts or f"{len(self.bad)} bad rows",
            expected=f"groups of at most {self.options.max_length} tokens",
            do="Raise max_length, or choose another truncation"
            if fitted
            else f"First: {self.bad[0].message}",
        )

    def _derivation(self) -> Derivation | None:
        if self.signal is None or self.signal == "prompts":
            return None
        options = self.options
        return Derivation(
            self.signal,
            pairing=options.pairing,
            min_gap=options.min_gap,
            soft_label_temperature=options.soft_label_temperature,
        )

    def _as_they_are(self, records: RecordFile) -> Iterator[Record]:
        for index in range(len(records)):
            yield prompt_only(records[index]) if self.signal == "prompts" else records[index]


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles among objects: rows make none, and looking for them again and again takes a tenth
    of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _noted(records: Iterator[Record], origins: deque[str]) -> Iterator[Record]:
    """The records, and where each comes from."""
    for record in records:
        origins.append(record.origin)
        yield record


def _prompts_only(reader: RecordReader, signal: Wanted) -> DataError:
    others = [name for name, role in reader.columns.items() if role == UNUSED]
    return DataError(
        f"{reader.source} holds prompts only, which give no {signal}",
        got="the other columns " + ", ".join(others) if others else "no other columns",
        expected="answers and what is known of them",
        do="Name your columns, as in --rows.columns chosen=winner,rejected=loser",
    )


def _refuse_making(signal: Wanted, options: DataOptions) -> None:
    """Options on how pairs or labels are made is an error where none are."""
    if options.pairing != "all" or options.min_gap > 0 or options.soft_label_temperature is not None:
        raise ConfigError(
            "The data options pairing, min_gap and soft_label_temperature have no effect here",
            got=f"signal {signal}",
            expected="pairs or labels made of rewards",
            do="Leave them out",
        )


def _with_signal(
    records: tuple[Record, ...], signal: Wanted, options: DataOptions
) -> tuple[tuple[Record, ...], SignalReport | None]:
    if signal is not None and signal != "prompts":
        return derive(
            records,
            signal,
            pairing=options.pairing,
            min_gap=options.min_gap,
            soft_label_temperature=options.soft_label_temperature,
        )
    return (tuple(map(prompt_only, records)) if signal == "prompts" else records), None


def _report(
    reader: RecordReader,
    derived: SignalReport | None,
    writer: StoreWriter,
    fitted: Mapping[str, int],
    num_bad: int,
    renderer: Renderer,
) -> DataReport:
    completions = sum(writer.completions)
    return DataReport(
        source=reader.source,
        format=reader.format,
        template=renderer.mode,
        num_rows=reader.num_rows,
        num_bad=num_bad,
        dropped_rows=dict(reader.dropped),
        columns=reader.columns,
        census=reader.census.found(reader.dropped),
        derived=derived,
        left_out=dict(renderer.left_out),
        fitted=dict(fitted),
        num_groups=writer.num_groups,
        num_completions=len(writer.completions),
        num_pairs=writer.num_pairs,
        num_tokens=sum(writer.prompts) + completions,
        num_context=completions - writer.num_scored,
        prompt_tokens=Lengths.of(writer.prompts),
        completion_tokens=Lengths.of(writer.completions),
    )
