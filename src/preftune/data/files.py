"""Rows of one file: JSON, JSON lines, CSV, TSV, Parquet, Arrow; the text formats plain or gzipped.

A fault of one row (a broken line, too few cells) comes out in the row's place, so that the caller can stop or
skip; a fault of the file (missing, damaged, empty) is raised.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from itertools import chain
from pathlib import Path

from preftune.data.arrow_files import arrow_values
from preftune.data.json_files import AROUND, json_fault, json_values, parse, read_whole, refuse_split
from preftune.data.names import SUFFIXES, suffix_of
from preftune.errors import DataError, shown

MAX_LINE_BYTES = 64 << 20  # of one row of .jsonl
_BUFFER = 1 << 18  # bytes that are read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it is in its file, or what is wrong with it. JSON lines are numbered by line, others by
    row.
    """

    file: str
    number: int  # from 1
    value: dict[str, object] | DataError


def located(file: str, number: int, error: DataError) -> DataError:
    """The error with the file and the row it speaks of in front."""
    return DataError(f"{file}, row {number}: {error}")


def read_file(path: Path, split: str | None) -> Iterator[RawRow]:
    """The rows of one file; `split` picks the list in a .json file of one list per split, None takes the file
    whole.
    """
    suffix = suffix_of(path)
    if suffix not in (".json", ".json.gz"):
        refuse_split(str(path), split)
    name = str(path)
    if path.is_dir():
        raise DataError(f"{name} is a folder", expected="a file", do="Name one of the files in it")
    if not suffix:
        raise DataError(
            f"{name}: this kind of file cannot be read",
            got=path.suffix or "no ending",
            expected=" ".join(SUFFIXES),
        )
    try:
        if not path.is_file():
            raise DataError(
                f"{name} is not a regular file",
                got="a pipe or a device",
                expected="a file on a disk",
                do="Write what it holds to a file first",
            )
        if path.stat().st_size == 0:
            raise DataError(f"{name} is empty", got="0 bytes", expected="at least one row")
        if suffix in (".parquet", ".arrow"):
            for number, value in enumerate(arrow_values(path, suffix), start=1):
                yield RawRow(file=name, number=number, value=value)
            return
        with (
            gzip.open(path, "rb")
            if suffix.endswith(".gz")
            else BufferedReader(path.open("rb", buffering=0), _BUFFER) as file
        ):
            yield from _text_rows(file, name, suffix.removesuffix(".gz"), split)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{name}: the gzip file is damaged or cut off",
            got=str(error),
            expected="a whole gzip file",
            do="Copy or download it again",
        ) from error
    except OSError as error:
        raise DataError(
            f"{name} cannot be read", got=error.strerror or str(error), expected="a readable file"
        ) from error


def _text_rows(file: BufferedIOBase, name: str, suffix: str, split: str | None) -> Iterator[RawRow]:
    if suffix == ".jsonl":
        yield from _json_lines(file, name)
    elif suffix in (".csv", ".tsv"):
        yield from _csv_rows(file, name, tabs=suffix == ".tsv")
    else:
        yield from _json_rows(file, name, split)


# --- lines ---


def _lines(file: BufferedIOBase, name: str) -> Iterator[tuple[int, int, bytes | DataError]]:
    """(number from 1, offset of its first byte, line); a line that is too long is passed over in pieces."""
    offset, number = 0, 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        start, offset = offset, offset + len(line)
        if len(line) <= MAX_LINE_BYTES:
            yield number, start, line
            continue
        while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
            offset += len(line)
        yield (
            number,
            start,
            DataError(
                f"{name}, row {number}: the line is too long",
                got=f"more than {MAX_LINE_BYTES >> 20} MiB",
                expected="one row of text per line",
                do="A .json list of rows must not be called .jsonl",
            ),
        )


def _decoded(raw: bytes, offset: int, where: str) -> str | DataError:
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        near = raw[max(0, error.start - AROUND) : error.start + AROUND]
        return DataError(
            f"{where}: the text is not UTF-8 at byte {offset + error.start} of the file",
            got=shown(near),
            expected="UTF-8 text",
            do=_remedy(raw, start=offset == 0),
        )


def _remedy(raw: bytes, *, start: bool) -> str:
    """For bytes that are not UTF-8 text, at the start of a file or later."""
    if start and raw.startswith(b"\x1f\x8b"):
        return "The content is gzip: add .gz to the name, or unpack the file once more"
    encoding = _likely_encoding(raw, start=start)
    if encoding is None:
        return "Save the file as UTF-8"
    again = f"iconv -f {encoding} -t UTF-8 FILE > NEW"
    return f"The bytes read as {encoding}: save the file as UTF-8 (in Excel: CSV UTF-8), or run `{again}`"


def _likely_encoding(raw: bytes, *, start: bool) -> str | None:
    """The encoding that reads the bytes: by its mark, or cp1252 if every byte is a printable letter there."""
    if start and raw.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if start and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return None
    mixed = not raw.decode("utf-8", errors="ignore").isascii()  # UTF-8 with a damaged place
    return (
        "cp1252" if not mixed and all(one.isprintable() or one in "\t\r\n\xa0\xad" for one in text) else None
    )


def _json_lines(file: BufferedIOBase, name: str) -> Iterator[RawRow]:
    for number, offset, line in _lines(file, name):
        text = line if isinstance(line, DataError) else _decoded(line, offset, f"{name}, row {number}")
        if isinstance(text, DataError):
            yield RawRow(file=name, number=number, value=text)
        elif text and not text.isspace():
            yield _json_row(text, name, number)


def _json_row(text: str, name: str, number: int) -> RawRow:
    try:
        value = parse(text)
    except (ValueError, RecursionError) as error:
        return RawRow(file=name, number=number, value=json_fault(f"{name}, row {number}", text, error))
    return _object_row(value, name, number)


def _object_row(value: object, name: str, number: int) -> RawRow:
    if isinstance(value, dict):
        return RawRow(file=name, number=number, value=value)
    fault = DataError(
        f"{name}, row {number}: the row is not an object",
        got=f"{type(value).__name__} {shown(value)}",
        expected="a JSON object of fields",
    )
    return RawRow(file=name, number=number, value=fault)


def _json_rows(file: BufferedIOBase, name: str, split: str | None) -> Iterator[RawRow]:
    text = _decoded(read_whole(file, name), 0, name)
    if isinstance(text, DataError):
        raise text
    for number, value in json_values(text, name, split):
        yield (
            RawRow(file=name, number=number, value=value)
            if isinstance(value, DataError)
            else _object_row(value, name, number)
        )


# --- tables ---


def _separator(header: str) -> str:
    """The comma, or what stands in a header without commas: spreadsheets of many languages write semicolons."""
    return "," if "," in header else next((sign for sign in ";\t" if sign in header), ",")


def _csv_rows(file: BufferedIOBase, name: str, *, tabs: bool) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE_BYTES)  # the module's own limit of 128 KiB is less than a long dialogue
    faults: list[DataError] = []  # of the lines that the reader has taken since the last row

    def texts() -> Iterator[str]:
        for _, offset, line in _lines(file, name):
            text = (
                line if isinstance(line, DataError) else _decoded(line, offset, f"{name}, row {number + 1}")
            )
            if isinstance(text, DataError):
                faults.append(text)
                text = "" if isinstance(line, DataError) else line.decode("utf-8", errors="replace")
            yield text

    header, number, lines = None, 0, texts()
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), strict=True, delimiter="\t" if tabs else _separator(first))
    try:
        for cells in reader:
            if header is None:
                header = _header(cells, faults, name)
            elif cells:
                number += 1
                yield _csv_row(header, cells, faults, name, number)
            faults.clear()
    except csv.Error as error:
        raise DataError(
            f"{name}, row {number + 1}: broken CSV",
            got=str(error),
            expected='comma-separated cells, with "" for a quote inside quotes',
        ) from error


def _header(cells: list[str], faults: list[DataError], name: str) -> list[str]:
    if faults:
        raise faults[0]
    cells = [cell.strip() for cell in cells]
    repeated = [cell for cell in cells if cells.count(cell) > 1]
    if repeated:
        raise DataError(
            f"{name}: a column name appears twice in the first line",
            got=shown(repeated[0]),
            expected="different columns",
        )
    return cells


def _csv_row(header: list[str], cells: list[str], faults: list[DataError], name: str, number: int) -> RawRow:
    if faults:
        return RawRow(file=name, number=number, value=faults[0])
    if len(cells) != len(header):
        fault = DataError(
            f"{name}, row {number}: wrong number of cells",
            got=str(len(cells)),
            expected=f"{len(header)}, one for each of {', '.join(header)}",
            do="Put cells that hold commas or line breaks in double quotes",
        )
        return RawRow(file=name, number=number, value=fault)
    return RawRow(file=name, number=number, value=dict(zip(header, cells, strict=True)))
