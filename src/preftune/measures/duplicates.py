"""Texts that repeat others, exactly or nearly. Pure, numpy only."""

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt64

SHINGLE = 3  # words
NEAR = 0.8  # Jaccard similarity of shingles from which two texts are near-duplicates
_HASHES, _BANDS = 64, 16  # bands of 4: a pair of similarity 0.8 is missed once in 5,000, see tests
_CROWD = 64  # rows of one bucket from which on it is taken for a template
_MIX = np.random.default_rng(2404).integers(1, 2**63, size=(2, _HASHES), dtype=np.uint64)
_MULTIPLIER = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
_WORD = re.compile(r"\w+")

DuplicateKind = Literal["exact", "normalized", "near"]
RowTexts = tuple[str, ...]
"""Texts that must all repeat those of another row, such as a prompt and its completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Of each row, the first row that it repeats, by its place; None if it is new. Each list takes in the one
    before it.
    """

    exact: tuple[int | None, ...]
    normalized: tuple[int | None, ...]
    near: tuple[int | None, ...]

    def share(self, kind: DuplicateKind = "near") -> float:
        """Share of rows that repeat another one."""
        found = getattr(self, kind)
        return sum(place is not None for place in found) / len(found) if found else 0.0


def words(text: str) -> list[str]:
    """Words without case, punctuation and the forms of Unicode that look alike; of a text without a word, its
    characters.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(plain) or plain.split()


def normalized(text: str) -> str:
    """Texts that are equal after this differ in case, space or punctuation only."""
    return " ".join(words(text))


def repeats(rows: Sequence[RowTexts]) -> Repeats:
    """Which rows repeat an earlier one that is new itself."""
    return _repeats(rows, {}, {}, _Near(), learn=True)


def repeats_of(rows: Sequence[RowTexts], others: Sequence[RowTexts]) -> Repeats:
    """Which rows repeat one of the others."""
    exact, plain, near = {}, {}, _Near()
    _repeats(others, exact, plain, near, learn=True)
    return _repeats(rows, exact, plain, near, learn=False)


def _repeats(
    rows: Sequence[RowTexts],
    exact: dict[RowTexts, int],
    plain: dict[RowTexts, int],
    near: "_Near",
    *,
    learn: bool,
) -> Repeats:
    found: list[tuple[int | None, ...]] = []
    for place, row in enumerate(rows):
        simple = tuple(map(normalized, row))
        alike = plain.get(simple)
        parts = [shingles(text) for text in simple] if alike is None else []
        similar = near.find(parts) if alike is None else alike
        found.append((exact.get(row), alike, similar))
        if learn:
            exact.setdefault(row, place)
            plain.setdefault(simple, place)
            if similar is None:
                near.add(parts, place)
    first, second, third = zip(*found, strict=True) if found else ((), (), ())
    return Repeats(exact=first, normalized=second, near=third)


class _Near:
    """Rows by bands of the MinHash of each part; candidates are compared exactly, part by part.

    A bucket that many rows share holds words of a template, which distinguish no rows: it is left out, so that the
    time does not grow with the square of the rows. The part with the fewest candidates names them, since every part
    must be alike.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Sequence[np.ndarray]] = {}
        self.buckets: dict[tuple[int, int, bytes], list[int]] = defaultdict(list)

    def add(self, parts: Sequence[np.ndarray], place: int) -> None:
        self.rows[place] = parts
        for number, part in enumerate(parts):
            for band in _bands(part):
                bucket = self.buckets[number, *band]
                if len(bucket) < _CROWD:
                    bucket.append(place)

    def find(self, parts: Sequence[np.ndarray]) -> int | None:
        least: set[int] | None = None
        certain = False
        for number, part in enumerate(parts):
            found = [self.buckets.get((number, *band), ()) for band in _bands(part)]
            whole = all(len(bucket) < _CROWD for bucket in found)
            candidates = {place for bucket in found if len(bucket) < _CROWD for place in bucket}
            if found and (least is None or (whole, -len(candidates)) > (certain, -len(least))):
                least, certain = candidates, whole
        alike = (place for place in sorted(least or ()) if self._alike(parts, place))
        return next(alike, None)

    def _alike(self, parts: Sequence[np.ndarray], place: int) -> bool:
        return all(jaccard(one, two) >= NEAR for one, two in zip(parts, self.rows[place], strict=True))


def shingles(text: str) -> UInt64[np.ndarray, " S"]:
    """The distinct runs of SHINGLE words, hashed; of a shorter text the one run that it is."""
    hashed = np.array(
        [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in text.split()], dtype=np.uint64
    )
    if not len(hashed):
        return hashed
    hashed = np.concatenate([hashed, np.zeros(max(0, SHINGLE - len(hashed)), dtype=np.uint64)])
    count = len(hashed) - SHINGLE + 1
    parts = [hashed[k : k + count] * _MULTIPLIER[k] for k in range(SHINGLE)]
    return np.unique(parts[0] ^ (parts[1] << np.uint64(1)) ^ (parts[2] << np.uint64(2)))


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """|A and B| / |A or B| of two sorted arrays of distinct numbers; two empty arrays are equal."""
    common = len(np.intersect1d(one, two, assume_unique=True))
    total = len(one) + len(two) - common
    return common / total if total else 1.0


def _bands(found: np.ndarray) -> Iterable[tuple[int, bytes]]:
    """MinHash (Broder, "On the resemblance and containment of documents", 1997) in bands of rows that must
    agree.
    """
    if not len(found):
        return []
    least = (found[:, None] * (_MIX[0] | np.uint64(1)) + _MIX[1] >> np.uint64(16)).min(0)
    return [(number, part.tobytes()) for number, part in enumerate(np.split(least, _BANDS))]
