"""Rows of Parquet and Arrow files. A damaged file is an error: it is read, checked in full, and never mapped into
memory, where a damaged offset would end the process.
"""

from collections.abc import Iterator
from pathlib import Path

from preftune.errors import DataError

_ROWS = 1000  # that are checked and converted at once


def arrow_values(path: Path, suffix: str) -> Iterator[dict[str, object]]:
    """The rows of one file, in order."""
    import pyarrow

    try:
        for batch in _batches(path, suffix):
            batch.validate(full=True)
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError, KeyError, IndexError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk, not of the file's content
        raise DataError(
            f"{path}: the file is damaged or of another kind",
            got=(str(error).strip() or type(error).__name__).splitlines()[0],
            expected=f"a whole {suffix} file",
        ) from error


def _batches(path: Path, suffix: str):
    import pyarrow
    import pyarrow.parquet

    if suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path, memory_map=False) as table:
            yield from table.iter_batches(batch_size=_ROWS)
        return
    with pyarrow.OSFile(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))
