"""Groups of token ids on disk: written one after another, read by number. Memory holds 16 bytes of each.

Three files: `tokens`, the int32 ids of all groups, prompt and completions one after another (an id that is
not scored is kept as its complement, a negative number); `heads`, a line of JSON for each group with lengths,
signal and origin; `index`, where both end. They are read by position and not mapped: pages of a mapped file
that were once read count as the process's own memory.
"""

import hashlib
import json
import os
import shutil
import struct
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np

from preftune.errors import storage_error
from preftune.types import Group

FILES = ("tokens", "heads", "index")
META = "meta.json"
_BUFFER = 1 << 20  # bytes that are written at once
_ENDS = struct.Struct("<qq")  # of a group's tokens and of its head, in bytes
_JSON = json.JSONEncoder(separators=(",", ":"))


class StoreWriter:
    """Writes groups into an empty folder, and keeps the numbers that a report is made of."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.prompts, self.completions = array("i"), array("i")  # lengths in tokens
        self.num_pairs = self.num_scored = self.num_groups = 0
        self._tokens, self._heads = (
            (folder / name).open("wb", buffering=_BUFFER) for name in ("tokens", "heads")
        )
        self._index = (folder / "index").open("wb", buffering=_BUFFER)
        self._ends = [0, 0]

    def add(self, group: Group) -> None:
        """One more group, whose tokens were not sampled."""
        completions = group.completions
        if group.scored:
            completions = [
                np.where(mask, ids, ~ids) for ids, mask in zip(group.completions, group.scored, strict=True)
            ]
        tokens = b"".join(ids.astype("<i4", copy=False).tobytes() for ids in (group.prompt, *completions))
        lengths = [len(ids) for ids in group.completions]
        head = (
            _JSON.encode(
                [
                    len(group.prompt),
                    lengths,
                    group.pairs,
                    group.probabilities,
                    group.labels,
                    group.rewards,
                    group.sources,
                    group.origin,
                ]
            ).encode()
            + b"\n"
        )
        self._tokens.write(tokens)
        self._heads.write(head)
        self._ends = [self._ends[0] + len(tokens), self._ends[1] + len(head)]
        self._index.write(_ENDS.pack(*self._ends))
        self.prompts.append(len(group.prompt))
        self.completions.extend(lengths)
        self.num_groups += 1
        self.num_pairs += len(group.pairs)
        self.num_scored += sum(group.num_scored) if group.scored else sum(lengths)

    def finish(self, meta: dict[str, object]) -> None:
        """Close the files, and write what is to be known of them, with a digest of each."""
        for file in (self._tokens, self._heads, self._index):
            file.close()
        digests = {name: _digest(self.folder / name) for name in FILES}
        (self.folder / META).write_text(json.dumps({"digests": digests, **meta}))

    def close(self) -> None:
        for file in (self._tokens, self._heads, self._index):
            file.close()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def read_meta(folder: Path) -> dict | None:
    """What is to be known of a store; None if there is none, or it is damaged."""
    try:
        meta = json.loads((folder / META).read_text())
        whole = all(_digest(folder / name) == meta["digests"][name] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if whole else None


class LazyGroups(Sequence[Group]):
    """A sequence of groups that are made when they are requested; a slice of it makes none."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> "LazyGroups": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Group | LazyGroups":
        return self._part(index) if isinstance(index, slice) else self._at(range(len(self))[index])

    def _part(self, part: slice) -> "LazyGroups":
        return SomeGroups(groups=self, places=np.arange(len(self))[part])

    def _at(self, place: int) -> Group:
        raise NotImplementedError


class StoredGroups(LazyGroups):
    """The groups of a store, each made when it is requested. The files stay open, so they may be unlinked
    meanwhile.
    """

    def __init__(self, folder: Path, certain: bool):
        """Open a store; with `certain`, the probability of a pair defaults to 1."""
        self._tokens, self._heads = (os.open(folder / name, os.O_RDONLY) for name in ("tokens", "heads"))
        for file in (self._tokens, self._heads):
            weakref.finalize(self, os.close, file)
        self._ends = np.fromfile(folder / "index", dtype="<i8").reshape(-1, 2)
        self._certain = certain

    def __len__(self) -> int:
        return len(self._ends)

    def _at(self, place: int) -> Group:
        start = self._ends[place - 1] if place else np.zeros(2, dtype=np.int64)
        (tokens, head), end = map(int, start), self._ends[place]
        ids = np.frombuffer(os.pread(self._tokens, int(end[0]) - tokens, tokens), dtype="<i4").astype(
            np.int32
        )
        return _group(ids, json.loads(os.pread(self._heads, int(end[1]) - head, head)), self._certain)


def _group(ids: np.ndarray, head: list, certain: bool) -> Group:
    prompt, lengths, pairs, probabilities, labels, rewards, sources, origin = head
    parts, place = [], prompt
    for length in lengths:
        parts.append(ids[place : place + length])
        place += length
    some_read = bool(lengths) and int(ids.min()) < 0
    if certain and not probabilities:
        probabilities = [1.0] * len(pairs)
    return Group(
        prompt=ids[:prompt],
        completions=tuple(np.where(part < 0, ~part, part) for part in parts) if some_read else tuple(parts),
        scored=tuple(part >= 0 for part in parts) if some_read else (),
        pairs=tuple((i, j) for i, j in pairs),
        probabilities=tuple(probabilities),
        labels=tuple(labels),
        rewards=tuple(rewards),
        sources=tuple(sources),
        origin=origin,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SomeGroups(LazyGroups):
    """Some of the groups of another sequence, in a separate order; eight bytes of each are kept."""

    groups: Sequence[Group]
    places: np.ndarray  # [groups], numbers in the other sequence

    def __len__(self) -> int:
        return len(self.places)

    def _part(self, part: slice) -> LazyGroups:
        return SomeGroups(groups=self.groups, places=self.places[part])

    def _at(self, place: int) -> Group:
        return self.groups[self.places[place]]


@dataclass(frozen=True, eq=False, kw_only=True)
class JoinedGroups(LazyGroups):
    """Two sequences of groups, one after the other."""

    first: Sequence[Group]
    second: Sequence[Group]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def _at(self, place: int) -> Group:
        return self.first[place] if place < len(self.first) else self.second[place - len(self.first)]


# --- folders ---


def scratch_folder() -> Path:
    """An empty folder for a store that is not kept."""
    try:
        return Path(tempfile.mkdtemp(prefix="preftune-"))
    except OSError as error:
        raise storage_error("write the token store", tempfile.gettempdir(), error) from error


def publish(scratch: Path, folder: Path) -> None:
    """Move a finished store to its place. A second process finds the same store there; a damaged one
    gives way.
    """
    try:
        for _ in range(2):
            try:
                os.rename(scratch, folder)
                return
            except OSError:
                if not folder.is_dir():
                    raise
            if read_meta(folder) is not None:
                shutil.rmtree(scratch)
                return
            broken = scratch.with_name(f"{scratch.name}.broken")
            with suppress(FileNotFoundError):  # another process has removed it
                os.rename(folder, broken)
            shutil.rmtree(broken, ignore_errors=True)
    except OSError as error:
        raise storage_error("write the token store", folder, error) from error
