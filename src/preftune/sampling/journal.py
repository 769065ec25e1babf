"""The journal of a sampling server: a completion is on disk before the next request, so none is paid for twice."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from preftune.errors import storage_error
from preftune.sampling.replies import ROW


def read_journal(path: Path | None) -> dict[str, dict[str, Any]]:
    """Rows by their request. A line that was not written to its end is left out, and so drawn again."""
    if path is None or not path.exists():
        return {}
    rows = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise storage_error("read the journal", path, error) from error
    for line in lines:
        try:
            row = json.loads(line)
            rows[row["request"]] = {name: row.get(name) if name == "withheld" else row[name] for name in ROW}
        except (ValueError, KeyError, TypeError):
            continue
    return rows


@contextmanager
def journal_writer(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Appends rows, each on the disk's way before the next request is sent."""
    if path is None:
        yield lambda row: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise storage_error("write the journal", path, error) from error

    def write(row: dict[str, Any] | None) -> None:
        try:
            file.write("\n" if row is None else json.dumps(row) + "\n")
            file.flush()
        except OSError as error:
            raise storage_error("write the journal", path, error) from error

    with closing(file):
        write(None)  # a line that a crash left unfinished stays alone
        yield write
