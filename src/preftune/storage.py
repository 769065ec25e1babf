"""The user's cache folder, and files that are written whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune.errors import storage_error


def cache_folder() -> Path:
    """PREFTUNE_CACHE, or preftune/ in the user's cache folder."""
    named = os.environ.get("PREFTUNE_CACHE")
    return (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune"
    )


@contextmanager
def whole_file(path: Path, action: str) -> Iterator[Path]:
    """Gives a temporary file to write in `path`'s place: a reader never sees half a file, and a failed write
    leaves what was there. `action` is for the message: "write the report".
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(action, path, error) from error


def json_line(row: object) -> str:
    """A row of a JSON Lines file, with its end of line. Text that UTF-8 cannot hold (a lone surrogate) stays an
    escape; what JSON does not know is written as its text.
    """
    line = json.dumps(row, ensure_ascii=False, default=str)
    if not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):
        line = json.dumps(row, default=str)
    return line + "\n"


def rows_to_jsonl(rows: Iterable[object]) -> str:
    return "".join(map(json_line, rows))


def write_jsonl(path: Path, rows: Iterable[object], action: str) -> None:
    """JSON Lines, whole or not at all; `action` is for the message: "write the samples"."""
    with whole_file(path, action) as file:
        file.write_text(rows_to_jsonl(rows), encoding="utf-8")


def write_json(path: Path, content: object, action: str, indent: int = 2) -> None:
    """A JSON file, whole or not at all."""
    with whole_file(path, action) as file:
        file.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
