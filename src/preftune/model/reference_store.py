"""The reference's logp of every completion token on disk, verified whenever it is read."""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from preftune.errors import StorageError, storage_error
from preftune.storage import sync
from preftune.types import Group

RefLogps = list[list[np.ndarray]]
"""[group][completion] -> float32 [tokens]"""

_INDEX = np.dtype([("key", "V16"), ("start", "<i8"), ("length", "<i4"), ("check", "<u4")])
"""Of each completion: what its numbers belong to, the first of them, how many, and their CRC-32."""

_MOST = 1 << 24  # completions of a shard; a larger count is damage


def completion_keys(group: Group) -> list[bytes]:
    """128-bit digests of what a completion's numbers depend on in addition to the reference: the tokens of prompt and
    completion, and which of them are scored.

    Template, tokenizer and truncation act through the tokens alone.
    """
    prompt = hashlib.blake2b(group.prompt.astype("<i4").tobytes(), digest_size=32).digest()
    keys = []
    for k, completion in enumerate(group.completions):
        scored = group.scored[k].tobytes() if group.scored and not group.scored[k].all() else b""
        kind = b"some scored" if scored else b""  # a mask is never taken for more tokens
        content = prompt + completion.astype("<i4").tobytes() + scored
        keys.append(hashlib.blake2b(content, digest_size=16, person=kind).digest())
    return keys


class ReferenceStore:
    """Per-token logp of one reference: immutable shards `NAME.scores`, each a count, an index and float32 values.

    A shard's name is the digest of its index, and the index has a checksum of each completion's values, so
    damage anywhere is noticed. A damaged shard is deleted, and its numbers are computed again. One shard is
    open at a time, however many there are. Where the folder cannot be written, new shards are kept in a
    temporary folder for this process.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged: list[str] = []  # names of shards that were deleted
        self._shards: list[Path] = []
        self._found: dict[bytes, tuple[int, int, int, int]] = {}  # shard, place in bytes, length, checksum
        self._held: list[tuple[int, int] | None] = [None]  # the open shard and its file
        self._spare: Path | None = None
        for path in sorted(folder.glob("*.scores")):
            self._read_index(path)
        weakref.finalize(self, _close, self._held)

    def __contains__(self, group: Group) -> bool:
        """Whether the numbers of all completions are there, as they were written."""
        return all(
            self._values(key) is not None if key in self._found else False for key in completion_keys(group)
        )

    def get(self, group: Group) -> list[np.ndarray]:
        found = []
        for key, num_scored in zip(completion_keys(group), group.num_scored, strict=True):
            values = self._values(key) if key in self._found else None
            if values is None or len(values) != num_scored:
                raise StorageError(
                    f"The reference cache {self.folder} was damaged while it was in use",
                    got="no such numbers" if values is None else f"{len(values)} tokens",
                    expected=f"{num_scored} tokens",
                    do="Start again: what is damaged is computed anew",
                )
            found.append(values)
        return found

    def add(self, groups: Sequence[Group], logps: RefLogps) -> None:
        """Write one more shard, whole or not at all."""
        flat = {
            key: np.asarray(logp, dtype="<f4")
            for group, one in zip(groups, logps, strict=True)
            for key, logp in zip(completion_keys(group), one, strict=True)
        }
        lengths = np.array([len(logp) for logp in flat.values()])
        index = np.empty(len(flat), _INDEX)
        index["key"] = np.frombuffer(b"".join(flat), dtype="V16")
        index["start"], index["length"] = np.cumsum(lengths) - lengths, lengths
        index["check"] = [zlib.crc32(logp.tobytes()) for logp in flat.values()]
        content = [
            np.int64(len(flat)).tobytes(),
            index.tobytes(),
            *(logp.tobytes() for logp in flat.values()),
        ]
        name = f"{_name_of(index)}.scores"
        try:
            path = _write_shard(self._spare or self.folder, name, content)
        except PermissionError:
            path = _write_shard(self._make_spare(), name, content)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise storage_error("write the reference cache", self.folder, error) from error
            path = _write_shard(self._make_spare(), name, content)
        self._read_index(path)

    def _make_spare(self) -> Path:
        """For a cache of other users, which only they may write."""
        try:
            self._spare = Path(tempfile.mkdtemp(prefix="preftune-reference-"))
        except OSError as error:
            raise storage_error("write the reference cache", tempfile.gettempdir(), error) from error
        weakref.finalize(self, shutil.rmtree, self._spare, ignore_errors=True)
        return self._spare

    def _read_index(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                count = int.from_bytes(file.read(8), "little")
                content = file.read(count * _INDEX.itemsize) if count <= _MOST else b""
        except FileNotFoundError:  # another process has found it damaged
            return
        except OSError as error:
            raise storage_error("read the reference cache", path, error) from error
        if len(content) != count * _INDEX.itemsize or _name_of(content) != path.name.partition(".")[0]:
            self._delete(path)
            return
        number, first = len(self._shards), 8 + len(content)
        self._shards.append(path)
        for row in np.frombuffer(content, dtype=_INDEX):
            place, length, check = first + 4 * int(row["start"]), int(row["length"]), int(row["check"])
            self._found[row["key"].tobytes()] = (number, place, length, check)

    def _values(self, key: bytes) -> np.ndarray | None:
        """The numbers of a completion; None if their shard turned out to be damaged, and is gone."""
        number, place, length, check = self._found[key]
        content = b""
        with suppress(FileNotFoundError):
            content = os.pread(self._file(number), 4 * length, place)
        if len(content) == 4 * length and zlib.crc32(content) == check:
            return np.frombuffer(content, dtype="<f4")
        self._delete(self._shards[number])
        self._found = {one: where for one, where in self._found.items() if where[0] != number}
        return None

    def _file(self, number: int) -> int:
        if self._held[0] is None or self._held[0][0] != number:
            _close(self._held)
            try:
                file = os.open(self._shards[number], os.O_RDONLY)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise storage_error("read the reference cache", self._shards[number], error) from error
            self._held[0] = (number, file)
            return file
        return self._held[0][1]

    def _delete(self, path: Path) -> None:
        self.damaged.append(path.name)
        with suppress(OSError):  # of another user, or gone already
            path.unlink()


def _name_of(index: np.ndarray | bytes) -> str:
    content = index if isinstance(index, bytes) else index.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write_shard(folder: Path, name: str, content: Sequence[bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, scratch = folder / name, folder / f".{name}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with scratch.open("wb") as file:
            file.writelines(content)
            file.flush()
            sync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _close(held: list[tuple[int, int] | None]) -> None:
    """Close the open shard, if there is one."""
    if held[0] is not None:
        os.close(held[0][1])
        held[0] = None
