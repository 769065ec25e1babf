"""Rows that a program has in memory: a list of dicts, a generator, a datasets.Dataset, a pandas.DataFrame.

Each becomes a source with a name that holds a digest of its rows, so that everything that takes the name of a file
takes it too, and the configuration of a run states truthfully where its rows came from.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

from preftune.data.files import RawRow
from preftune.errors import DataError

MEMORY = "in memory ("
_SOURCES: dict[str, Iterable[Any]] = {}


def source_name(data: Any) -> str:
    """The name of a source: of a file as it is, of rows in memory a new one."""
    return str(data) if isinstance(data, PathLike) else memory_source(data)


def memory_source(rows: Any) -> str:
    """The name of a source that holds these rows; they stay in memory as long as the process runs."""
    kept = _kept(rows)
    digest, number = hashlib.blake2b(digest_size=16), 0
    for row in kept:
        number += 1
        if not isinstance(row, Mapping):
            raise DataError(
                f"Row {number} of the data is not a mapping of columns",
                got=type(row).__name__,
                expected='rows such as {"prompt": ..., "chosen": ..., "rejected": ...}',
            )
        digest.update(json.dumps(plain(row), sort_keys=True, default=str).encode(errors="surrogatepass"))
    if not number:
        raise DataError("The data hold no rows", got="0 rows", expected="at least one row")
    name = f"{MEMORY}{number} rows, digest {digest.hexdigest()})"
    _SOURCES[name] = kept
    return name


def _kept(rows: Any) -> Iterable[Any]:
    if isinstance(rows, Mapping):
        raise DataError(
            "The data are one mapping",
            got="the keys " + ", ".join(map(str, list(rows)[:8])),
            expected='rows; of a dictionary of splits, name one, as in data["train"]',
        )
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a DataFrame
        columns = [str(name) for name in rows.columns]
        return [dict(zip(columns, cells, strict=True)) for cells in rows.itertuples(index=False, name=None)]
    if isinstance(rows, Iterable) and not isinstance(rows, (str, bytes)):
        whole = hasattr(rows, "features") and hasattr(rows, "__len__")  # a Dataset reads its own rows again
        return rows if whole else list(rows)
    raise DataError(
        "The data are of a kind that cannot be read",
        got=type(rows).__name__,
        expected="the name of a file, a list of dicts, a generator, a datasets.Dataset or a pandas.DataFrame",
    )


def memory_rows(source: str) -> Iterator[RawRow]:
    """The rows of a source in memory."""
    if source not in _SOURCES:
        raise DataError(
            f"The rows {source} are not in the memory of this process",
            got="a run whose data a program gave",
            expected="the same rows, given again by the program",
            do="Start from the program that made the rows, or write them to a file and name it",
        )
    for number, row in enumerate(_SOURCES[source], start=1):
        yield RawRow(file="data", number=number, value={str(name): plain(cell) for name, cell in row.items()})


def plain(value: Any) -> Any:
    """A value of NumPy or pandas as Python's own; what pandas writes for a missing cell is None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    return value
