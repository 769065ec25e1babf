"""Rows from whatever the user names: a file, a folder of files, a saved data set, a data set of the hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from preftune.data.files import SUFFIXES, RawRow, read_file, suffix_of
from preftune.data.options import DataOptions
from preftune.errors import DataError, shown

HUB_SECONDS = 10.0  # how long the hub may take to say whether it has the data set
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
_OTHER_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def read_rows(source: str, options: DataOptions) -> Iterator[RawRow]:
    """The rows of a source in their order, at most `max_rows` of them, with columns named as we name them."""
    number = 0
    for row in _rows_of(source, options.split):
        number += 1
        yield _renamed(row, options.columns) if options.columns else row
        if number == options.max_rows:
            return
    if number == 0:
        raise DataError(f"{source} holds no rows", got="0 rows", expected="at least one row")


def _rows_of(source: str, split: str) -> Iterator[RawRow]:
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved_rows(path, split)
        return _folder_rows(path, split)
    if path.exists():
        return read_file(path, split)
    if _HUB_ID.fullmatch(source) and not suffix_of(path):
        return _hub_rows(source, split)
    raise DataError(
        f"{source} does not exist",
        got="no such file or folder",
        expected="a file (" + " ".join(SUFFIXES) + "), a folder, or a hub id such as owner/name",
    )


def _renamed(row: RawRow, columns: dict[str, str]) -> RawRow:
    """The row with the user's columns under our names; a column that had our name already gives way."""
    if isinstance(row.value, DataError):
        return row
    missing = [column for column in columns.values() if column not in row.value]
    if missing:
        fault = DataError(
            f"{row.file}, row {row.number}: the column {missing[0]} named in columns is not there",
            got="the columns " + ", ".join(row.value),
            expected=f"a column {missing[0]}",
        )
        return RawRow(file=row.file, number=row.number, value=fault)
    taken = set(columns.values())
    value = {name: cell for name, cell in row.value.items() if name not in taken}
    value |= {field: row.value[column] for field, column in columns.items()}
    return RawRow(file=row.file, number=row.number, value=value)


# --- folders ---


def _folder_rows(folder: Path, split: str) -> Iterator[RawRow]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if suffix_of(path)
        and path.is_file()
        and path.name not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(
            f"The folder {folder} holds no data files",
            got=shown([path.name for path in folder.iterdir()]),
            expected="files ending in " + " ".join(SUFFIXES),
        )
    for path in _of_split(folder, files, split):
        yield from read_file(path, None)


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files whose name or folder holds the split as a word; all files for "train" if none names a split."""
    names = {path: str(path.relative_to(folder)) for path in files}
    for letters in (r"[A-Za-z0-9_]", r"[A-Za-z0-9]"):  # train-0.parquet goes before my_train.parquet
        word = re.compile(rf"(?<!{letters}){re.escape(split)}(?!{letters})")
        found = [path for path in files if word.search(names[path])]
        if found:
            return found
    others = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(_OTHER_SPLITS)})(?![A-Za-z0-9])")
    if split == "train" and not any(others.search(name) for name in names.values()):
        return files
    raise DataError(
        f"The folder {folder} has no file of the split {split}",
        got=shown(list(names.values()), 300),
        expected=f"files with {split} in their name",
    )


def _saved_rows(folder: Path, split: str) -> Iterator[RawRow]:
    """A data set that `datasets` wrote with save_to_disk, with or without splits."""
    import datasets

    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            path = folder / split
        else:
            splits = [json.loads((folder / "state.json").read_text(encoding="utf-8")).get("_split"), "train"]
            path = folder
        if split not in splits:
            raise DataError(
                f"{folder} has no split {split}",
                got=shown([name for name in splits if name]),
                expected="one of these splits",
            )
        rows = datasets.load_from_disk(str(path))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{folder}: the saved data set is damaged",
            got=f"{type(error).__name__}: {error}",
            expected="a folder written by save_to_disk",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(file=str(path), number=number, value=dict(row))


# --- the hub ---


def _hub_rows(source: str, split: str) -> Iterator[RawRow]:
    import datasets

    name, _, config = source.partition(":")
    _ask_hub(source, name)
    try:
        rows = datasets.load_dataset(
            name, config or None, split=split, download_config=datasets.DownloadConfig(max_retries=1)
        )
    except Exception as error:  # the library raises many kinds; all are the user's or the network's
        raise _hub_error(source, error) from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(file=source, number=number, value=dict(row))


def _ask_hub(source: str, name: str) -> None:
    """One quick question, because the loading library asks an unreachable hub for half a minute.

    What is in the cache is left to the library, which can do without the hub.
    """
    import huggingface_hub
    from datasets import config

    cached = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if cached.is_dir():
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=HUB_SECONDS)
    except Exception as error:
        raise _hub_error(source, error) from error


def _hub_error(source: str, error: Exception) -> DataError:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        what = f"{source} is neither here nor in the cache, and the hub is switched off"
        do = "Unset HF_HUB_OFFLINE, or "
    elif isinstance(error, HfHubHTTPError):
        what, do = f"The hub does not give the data set {source}", "Check the name and your access, or "
    elif isinstance(error, ValueError):
        what, do = (
            f"The data set {source} of the hub cannot be loaded",
            "Write owner/name:config to choose, or ",
        )
    else:
        what, do = (
            f"{source} is neither a local file or folder, nor could the hub be reached",
            "Check the name, or ",
        )
    return DataError(
        what,
        got=first,
        expected="a data set of the hub without a script",
        do=do + "name a local file or folder",
    )
