"""Where files of the user's cache lie, and files that are written whole or not at all."""

import os
from collections.abc import Iterator
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
