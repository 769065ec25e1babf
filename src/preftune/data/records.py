"""From a source to records, with an account of every row and column."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

from preftune.data.column_account import ColumnAccount
from preftune.data.column_advice import Try, advice_for_unknown
from preftune.data.column_map import columns_text, rules_of
from preftune.data.column_names import ColumnNames
from preftune.data.fields import ColumnFault
from preftune.data.files import RawRow, located
from preftune.data.formats import DETECTION_ROWS, FORMATS, Drop, Format, detect
from preftune.data.labels import LabelValues
from preftune.data.memory import MEMORY
from preftune.data.options import DataOptions
from preftune.data.read import read_rows
from preftune.data.row_view import TIE, RowView
from preftune.errors import ConfigError, DataError, PreftuneError
from preftune.progress import Reporter
from preftune.storage import write_jsonl
from preftune.types import Record


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
    columns: Mapping[str, str] = field(default_factory=dict)  # every column -> what it was used as
    census: Mapping[str, int] = field(default_factory=dict)  # see `Census`
    stop: str = ""  # why training stops: columns that look like preference information are not used


def write_bad_rows(path: str | Path, bad_rows: Sequence[BadRow]) -> None:
    """One JSON line {file, row, message} for each skipped row."""
    write_jsonl(Path(path), map(asdict, bad_rows), "write the list of bad rows")


class Census:
    """How many completions are preferred, dispreferred, neutral, rewarded or unlabelled; pairs and ties."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        counts = self.counts
        if record.pairs:
            counts["pairs"] += len(record.pairs)
        for label in record.labels:
            counts["neutral" if label is None else "preferred" if label > 0 else "dispreferred"] += 1
        if record.rewards:
            known = [reward for reward in record.rewards if reward is not None]
            counts["rewarded"] += len(known)
            counts["not rewarded"] += len(record.rewards) - len(known)
            counts["ties"] += len(known) > 1 and min(known) == max(known)
        elif not record.pairs and not record.labels:
            counts["unlabelled"] += len(record.completions)

    def found(self, dropped: Mapping[str, int]) -> dict[str, int]:
        """The counts, without those that are 0."""
        ties = self.counts["ties"] + dropped.get(TIE, 0)
        return {name: count for name, count in {**self.counts, "ties": ties}.items() if count}


class RecordReader:
    """The usable rows of a source as records, one by one; and what became of the other rows and of every column,
    known once all are read.

    A bad row stops with an error or is skipped, as the options state. `passed` states that columns which are not used
    go to reward functions; otherwise those that look like preference information stop the run, unless `stops` is
    False. `tried` states that this reader only tries flags, and gives no advice itself.
    """

    def __init__(
        self,
        source: str | Path,
        options: DataOptions,
        *,
        passed: bool = False,
        stops: bool = True,
        tried: bool = False,
    ):
        self.source, self.options = str(source), options
        self.passed, self.stops, self.tried = passed, stops, tried
        self.columns: dict[str, str] = {}
        self.stopping: list[str] = []  # columns that stop the run
        self.census, self.stop = Census(), ""
        self.format, self.num_records = "", 0
        self.bad_rows: list[BadRow] = []
        self.dropped: Counter[str] = Counter()
        self._count: Counter[str] = Counter()

    @property
    def num_rows(self) -> int:
        return self._count["rows"]

    def __iter__(self) -> Iterator[Record]:
        assert isinstance(self.options.columns, dict)
        names = ColumnNames()
        rows = _counted(read_rows(self.source, self.options, names), self._count)
        trial = self._trial()
        form, first, rows = _format_of(self.source, rows, self.options, trial)
        self.format = form.name
        passed = self.passed or self.options.format == "prompts"  # the user states that nothing else counts
        chosen = {rule.field: "+".join(rule.columns) for rule in rules_of(self.options.columns)}
        account = ColumnAccount(
            form, self.options.ignore, passed, names.spelled, chosen, columns_text(self.options.columns)
        )
        account.look(first)
        labels = LabelValues(self.options.columns)
        demonstrations = self.options.format == "completions"  # the user states it
        for row in rows:
            result: Record | Drop | DataError
            if isinstance(row.value, DataError):
                result = row.value
            else:
                view = RowView(row.value, labels, f"{row.file}:{row.number}")
                result = _converted(row, view, form)
                if not isinstance(result, DataError):
                    account.add(row.value, view.used)
                    if account.stops and self.stops and self._count["rows"] > DETECTION_ROWS:
                        account.check(self.source, trial)
            if isinstance(result, Record):
                self.num_records += 1
                if demonstrations:
                    result = replace(result, labels=(1,) * len(result.completions))
                self.census.add(result)
                yield result
            elif isinstance(result, Drop):
                self.dropped[result.reason] += 1
            else:
                self.bad_rows.append(bad_row(row.file, row.number, result, self.options))
        self.columns = account.summary()
        try:
            labels.check_places()
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from error
        self.stopping = account.stopping()
        if self.stops:
            account.check(self.source, trial)
        elif account.stops and not self.tried:
            self.stop = str(account.stop(self.source, trial))
        if not self.num_records:
            reasons = [f"{count} rows: {reason}" for reason, count in self.dropped.items()]
            reasons += (
                [f"{len(self.bad_rows)} bad rows, the first: {self.bad_rows[0].message}"]
                if self.bad_rows
                else []
            )
            raise DataError(
                f"{self.source}: no row can be used",
                got="; ".join(reasons),
                expected=f"rows of the format {form.name}",
            )

    def _trial(self) -> Try | None:
        """Reads the first rows with other flags, of sources that can be read again at no cost."""
        if self.tried or not (self.source.startswith(MEMORY) or Path(self.source).expanduser().exists()):
            return None

        def trial(columns: str, ignored: Sequence[str], form: str, signal: bool) -> list[str] | None:
            try:
                options = replace(
                    self.options,
                    columns=columns,
                    ignore=list(ignored),
                    format=form or self.options.format,
                    max_rows=DETECTION_ROWS,
                    bad_rows="error",
                )
                reader = RecordReader(self.source, options, passed=self.passed, stops=False, tried=True)
                records = list(reader)
            except PreftuneError:
                return None
            if signal and not any(record.pairs or record.labels or record.rewards for record in records):
                return None
            return reader.stopping

        return trial


def load_records(
    source: str | Path, options: DataOptions, *, passed: bool = False, stops: bool = True
) -> LoadedRecords:
    """All usable rows of a source as records in memory."""
    reader = RecordReader(source, options, passed=passed, stops=stops)
    records = tuple(reader)
    return LoadedRecords(
        records=records,
        format=reader.format,
        num_rows=reader.num_rows,
        bad_rows=tuple(reader.bad_rows),
        dropped=dict(reader.dropped),
        columns=reader.columns,
        census=reader.census.found(reader.dropped),
        stop=reader.stop,
    )


def _counted(rows: Iterator[RawRow], count: Counter) -> Iterator[RawRow]:
    for row in rows:
        count["rows"] += 1
        yield row


def bad_row(file: str, number: int, error: DataError, options: DataOptions) -> BadRow:
    if options.bad_rows == "error":
        raise DataError(f"{error} Set bad_rows to skip to leave such rows out and count them") from error
    return BadRow(file=file, row=number, message=str(error))


def _format_of(
    source: str, rows: Iterator[RawRow], options: DataOptions, trial: Try | None
) -> tuple[Format, list[dict], Iterator[RawRow]]:
    """The format that was requested or that the first good rows have, the first good rows, and all rows."""
    seen: list[RawRow] = []
    good: list[dict] = []
    for row in rows:
        seen.append(row)
        if isinstance(row.value, DataError):
            bad_row(row.file, row.number, row.value, options)
        else:
            good.append(row.value)
        if len(good) == DETECTION_ROWS:
            break
    if options.format != "auto":
        return FORMATS[options.format], good, chain(seen, rows)
    if not good:
        first = seen[0].value
        raise DataError(f"{source}: no row can be read; {len(seen)} bad rows, the first: {first}")
    try:
        assert isinstance(options.columns, dict)
        given = columns_text(options.columns)
        advise = (
            None if trial is None else lambda: advice_for_unknown(good, given, list(options.ignore), trial)
        )
        return detect(good, advise), good, chain(seen, rows)
    except DataError as error:
        raise located(source, 1, error) from error


def _converted(row: RawRow, view: RowView, form: Format) -> Record | Drop | DataError:
    try:
        return form.read(view)
    except ColumnFault as error:
        raise located(row.file, row.number, error) from error
    except DataError as error:
        return located(row.file, row.number, error)


def prompt_only(record: Record) -> Record:
    """The record's prompt and other columns, without completions and what is known of them."""
    return replace(
        record, completions=(), pairs=(), probabilities=(), labels=(), rewards=(), ended=(), sources=()
    )


def load_prompts(source: str, options: DataOptions, report: Reporter) -> Sequence[Record]:
    """The records of a file without their completions; rows that were skipped are counted."""
    loaded = load_records(source, options, passed=True)
    if loaded.bad_rows:
        report.note(
            f"skipped {len(loaded.bad_rows)} rows that cannot be used, the first: {loaded.bad_rows[0].message}"
        )
    return [prompt_only(record) for record in loaded.records]


def load_prompts_with_answers(
    source: str, column: str, options: DataOptions, report: Reporter
) -> tuple[Sequence[Record], list[str]]:
    """The prompts of a file and, for each of them, the answer in a column: a text that no format uses, or the
    completion that a format reads from it (of pairs, the chosen or the rejected completion).
    """
    loaded = load_records(source, options, passed=True)
    answers = [_answer(record, column) for record in loaded.records]
    lacking = sum(answer is None for answer in answers)
    if lacking == len(answers):
        raise ConfigError(
            f"{source} has no answers in the column {column!r}",
            got=f"the columns {', '.join(sorted(loaded.columns))}",
            expected="a column of texts, or chosen, rejected or completion where the file has them",
        )
    if lacking or loaded.bad_rows:
        report.note(f"skipped {lacking} rows without an answer and {len(loaded.bad_rows)} bad rows")
    known = [(record, answer) for record, answer in zip(loaded.records, answers, strict=True) if answer]
    return [prompt_only(record) for record, _ in known], [answer for _, answer in known]


def _answer(record: Record, column: str) -> str | None:
    found: object = record.columns.get(column)
    if found is None and column in ("chosen", "rejected") and record.pairs:
        found = record.completions[record.pairs[0][column == "rejected"]]
    elif found is None and column == "completion" and len(record.completions) == 1:
        found = record.completions[0]
    if isinstance(found, tuple):
        found = "\n\n".join(turn.content for turn in found if turn.role == "assistant")
    return found if isinstance(found, str) and found.strip() else None
