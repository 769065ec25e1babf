"""Names of data files, without the libraries that read them."""

from pathlib import Path

from preftune.errors import DataError

SUFFIXES = (
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".json.gz",
    ".jsonl.gz",
    ".csv.gz",
    ".tsv.gz",
    ".parquet",
    ".arrow",
)


def suffix_of(path: Path) -> str:
    """The known ending of a file name, or the empty string."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def missing_data(source: str) -> DataError:
    return DataError(
        f"{source} does not exist",
        got="no such file or folder",
        expected="a file (" + " ".join(SUFFIXES) + "), a folder, or a hub id such as owner/name",
    )
