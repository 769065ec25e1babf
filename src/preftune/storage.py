"""The user's cache folder, and how files reach the disk: whole or not at all, one writer at a time, with digests.

A file or folder is written under a temporary name, synced, and renamed into its place; then the folder that
holds it is synced. After a power failure its name leads to complete content or to what was there before.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, StorageError, storage_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The lock file of a folder. The lock of a file FILE is `.FILE.lock` in the same folder."""

DIGESTS = "digests.json"
"""In a finished model folder: the digest of each file."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of a file system that has no locks."""


def cache_folder() -> Path:
    """PREFTUNE_CACHE, or preftune/ in the user's cache folder."""
    named = os.environ.get("PREFTUNE_CACHE")
    return (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune"
    )


# --- whole files and folders ---


def encoded(text: str) -> bytes:
    """UTF-8. Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it."""
    return text.encode("utf-8", "backslashreplace")


def json_line(row: object) -> str:
    """A row of a JSON Lines file, with its end of line. Text that UTF-8 cannot hold (a lone surrogate) stays an
    escape; what JSON does not know is written as its text.
    """
    line = json.dumps(row, ensure_ascii=False, default=str)
    return encoded(line).decode() + "\n"


def rows_to_jsonl(rows: Iterable[object]) -> str:
    return "".join(map(json_line, rows))


def sync(file: int) -> None:
    """Write an open file to the disk. PREFTUNE_FSYNC=0 leaves that to the system: for runs that may be lost."""
    if os.environ.get("PREFTUNE_FSYNC") != "0":
        os.fsync(file)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk. File systems that cannot do that are left alone."""
    try:
        place = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that cannot open folders
        return
    try:
        sync(place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(place)


def sync_tree(folder: Path) -> None:
    """Write a folder, its files and its subfolders to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root) / name, "rb") as file:
                sync(file.fileno())
        sync_folder(Path(root))


@contextmanager
def whole_file(path: Path, action: str) -> Iterator[Path]:
    """Gives a temporary file to write in `path`'s place: a reader never sees half a file, and a failed write
    leaves what was there. `action` is for the message: "write the report".
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                sync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(action, path, error) from error


def write_jsonl(path: Path, rows: Iterable[object], action: str) -> None:
    """JSON Lines, whole or not at all; `action` is for the message: "write the samples"."""
    with whole_file(path, action) as file, file.open("wb") as lines:
        lines.writelines(json_line(row).encode() for row in rows)


def write_json(path: Path, content: object, action: str, indent: int = 2) -> None:
    """A JSON file, whole or not at all."""
    with whole_file(path, action) as file:
        file.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def put_in_place(scratch: Path, target: Path) -> None:
    """Rename a finished folder into its place, synced. A folder that is there already is kept until then."""
    sync_tree(scratch)
    old = target.with_name(f".old-{target.name}")
    if target.exists() or target.is_symlink():
        remove(old)
        os.rename(target, old)
    os.rename(scratch, target)
    sync_folder(target.parent)
    remove(old)


def remove(path: Path) -> None:
    """A file, a link (not what it leads to), or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- digests ---


def digest_of(path: Path) -> str:
    """BLAKE2b of a file's content, 128 bits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """Name of each file in a folder and its subfolders, relative to it -> digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


def first_damage(folder: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the first file that is missing or has another digest; None if all are as written."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"no file {name}"
        if digest_of(path) != digest:
            return f"other content in {name} ({path.stat().st_size:,} bytes)"
    return None


def folder_damage(folder: Path) -> str | None:
    """What is wrong with a folder that holds the digests of its files; None if nothing is, or without digests."""
    file = folder / DIGESTS
    try:
        return first_damage(folder, unsealed(file.read_bytes())) if file.is_file() else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{DIGESTS}: {error}"


def sealed(content: Mapping[str, Any]) -> str:
    """JSON text of `content` with a digest of it."""
    return json.dumps({"content": content, "digest": _digest_of_content(content)}, indent=1) + "\n"


def unsealed(text: bytes) -> Any:
    """The content of a text that `sealed` made; ValueError if it is not as it was written."""
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(whole, dict) or set(whole) != {"content", "digest"}:
        raise ValueError("no digest")
    if whole["digest"] != _digest_of_content(whole["content"]):
        raise ValueError("other content than was written")
    return whole["content"]


def _digest_of_content(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


# --- locks ---


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Within, this process alone holds the lock file `path`; the second process to want it is refused. `what`
    names what is locked, for the message.

    The system frees the lock of a process that ends, however it ends, so a file that is left behind locks
    nothing.
    """
    file = _take_lock(path, what)
    try:
        yield
    finally:
        with suppress(OSError):  # the output may have been removed
            path.unlink()
        if file is not None:
            os.close(file)


def _take_lock(path: Path, what: str) -> int | None:
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise storage_error("write", what, error) from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise StorageError(
                f"{path} is no file", got="a pipe or a device", expected="a lock file", do="Remove it"
            )
        try:
            _lock(file)
        except BlockingIOError as error:
            holder = os.read(file, 200).decode("utf-8", "replace").strip()
            os.close(file)
            raise StorageError(
                f"Another process is working on {what}",
                got=holder or "a process of unknown number",
                expected="one process at a time",
                do="Wait until it ends, or choose another output",
            ) from error
        except OSError as error:
            os.close(file)
            if error.errno not in _NO_LOCKS:
                raise storage_error("lock", what, error) from error
            print(f"note: this file system has no locks; do not start two runs on {what}", file=sys.stderr)
            return None
        if _is_at(file, path):
            break
        os.close(file)  # the process that held it has just removed the file
    os.ftruncate(file, 0)
    with suppress(OSError):  # a full disk: the lock holds without a name in it
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode(), 0)
    return file


def _lock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: int, path: Path) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(file)
    return (mine.st_ino, mine.st_dev) == (found.st_ino, found.st_dev)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Within, this process alone works in `folder`, which is made if it is not there. If nothing was written
    into it, it is removed again.
    """
    made = [path for path in [folder, *folder.parents] if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    try:
        with locked(folder / LOCK, str(folder)):
            yield
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


@contextmanager
def new_file(output: str, overwrite: bool) -> Iterator[Path]:
    """Within, this process alone makes the file `output`, which must be new unless `overwrite` is set."""
    path = Path(output)
    if not output or path.is_dir():
        raise ConfigError("The output is not a file name", got=repr(output), expected="a file name")
    with _made_parent(path), locked(path.with_name(f".{path.name}{LOCK}"), output):
        if not overwrite and (path.exists() or path.is_symlink()):
            raise ConfigError(
                f"The output {output} is there already",
                expected="a new file",
                do="Choose another --output, or add --overwrite",
            )
        _remove_unfinished(path)
        yield path


def _remove_unfinished(path: Path) -> None:
    """Removes what killed processes left of this file. Only for the process that holds its lock."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.\d+-[0-9a-f]{{8}}\.tmp{re.escape(path.suffix)}")
    for unfinished in path.parent.iterdir():
        if name.fullmatch(unfinished.name):
            with suppress(OSError):
                unfinished.unlink()


@contextmanager
def new_folder(output: Path) -> Iterator[None]:
    """Within, this process alone makes the folder `output`, which appears when it is finished."""
    with _made_parent(output), locked(output.with_name(f".{output.name}{LOCK}"), str(output)):
        yield


@contextmanager
def _made_parent(path: Path) -> Iterator[None]:
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", path.parent, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


# --- what processes that were killed left behind ---


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one that a process did not finish writing."""
    return name.startswith(".") and (".tmp" in name or name.startswith((".writing-", ".final-", ".old-")))


def remove_leftovers(folder: Path) -> list[str]:
    """Remove temporary files and folders directly in `folder`; their names. A folder that was about to be
    replaced returns to its place. Only for the process that holds the lock.
    """
    removed = []
    for path in sorted(folder.glob(".*")) if folder.is_dir() else []:
        place = folder / path.name.removeprefix(".old-")
        if path.name.startswith(".old-") and not place.exists():
            os.rename(path, place)
        elif is_leftover(path.name):
            with suppress(OSError):
                remove(path)
            removed.append(path.name)
    return removed
