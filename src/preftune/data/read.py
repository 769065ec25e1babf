"""Rows from whatever the user names: a file, a folder of files, a saved data set, a data set of the hub."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from preftune.data.arrow_files import arrow_values
from preftune.data.column_map import ColumnRule, mapped, rules_of
from preftune.data.column_names import ColumnNames
from preftune.data.files import RawRow, located, read_file
from preftune.data.memory import MEMORY, memory_rows
from preftune.data.names import SUFFIXES, missing_data, suffix_of
from preftune.data.nested_fields import holds
from preftune.data.options import DataOptions
from preftune.errors import ConfigError, DataError, shown

HUB_SECONDS = 10.0  # how long the hub may take to report whether it has the data set
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
_HELD_OUT_WORD = re.compile(r"(?<![A-Za-z])(test|validation|valid|val|dev|eval)(?![A-Za-z])")
_SPLIT_WORD = re.compile(r"(?<![A-Za-z])(train|test|validation|valid|val|dev|eval)(?![A-Za-z])")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def read_rows(source: str, options: DataOptions, names: ColumnNames | None = None) -> Iterator[RawRow]:
    """The rows of a source in their order, at most `max_rows` of them, with columns named as we name them.

    `names` comes to know how the user spells them.
    """
    assert isinstance(options.columns, dict)
    names = ColumnNames() if names is None else names
    number, rules, ignored = 0, rules_of(options.columns), frozenset(options.ignore)
    unseen = set(ignored)
    for row in _rows_of(source, options):
        number += 1
        yield _renamed(row, rules, ignored, unseen, names)
        if number == options.max_rows:
            return
    if number == 0:
        raise DataError(f"{source} holds no rows", got="0 rows", expected="at least one row")
    if unseen:
        raise ConfigError(
            "The data option ignore names a column that is not there",
            got=", ".join(sorted(unseen)),
            expected=f"columns of {source}",
        )


def _rows_of(source: str, options: DataOptions) -> Iterator[RawRow]:
    split, path = options.split, Path(source).expanduser()
    if source.startswith(MEMORY):
        _refuse_streaming(source, options)
        return memory_rows(source)
    if path.exists():
        _refuse_streaming(source, options)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved_rows(path, split)
        return _folder_rows(path, split)
    if path.exists():
        return read_file(path, split)
    if _HUB_ID.fullmatch(source) and not suffix_of(path):
        return _hub_rows(source, split, options.streaming)
    raise missing_data(source)


def _refuse_streaming(source: str, options: DataOptions) -> None:
    if options.streaming:
        raise ConfigError(
            "The data option streaming has no effect here",
            got=source,
            expected="a data set of the hub",
            do="Leave it out: local rows are always read one by one",
        )


def _renamed(
    row: RawRow, rules: tuple[ColumnRule, ...], ignored: frozenset[str], unseen: set[str], names: ColumnNames
) -> RawRow:
    """The row without ignored columns, and with the user's columns under our names.

    What is left of an object that was reached into (`chosen.votes`) can be ignored too, and so can a field inside a
    column (`meta.rating`): the account of columns passes over it.
    """
    if isinstance(row.value, DataError):
        return row
    value = row.value
    if ignored:
        value = {name: cell for name, cell in value.items() if name not in ignored}
    try:
        if rules:
            value = mapped(value, rules)
        if unseen:
            unseen -= {name for name in unseen if holds(row.value, name) or name in value}
        if ignored and rules:
            value = {name: cell for name, cell in value.items() if name not in ignored}
    except DataError as error:
        return RawRow(file=row.file, number=row.number, value=located(row.file, row.number, error))
    value = names.usual(value)
    return row if value is row.value else RawRow(file=row.file, number=row.number, value=value)


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
    """The files of a split, by their names or folders; all files for "train" if none names a split."""
    labels = split_labels([path.relative_to(folder) for path in files])
    found = [path for path, label in zip(files, labels, strict=True) if label == split]
    if found:
        return found
    held = {label for label in labels if _SPLIT_WORD.search(label)}
    if split == "train" and not held:
        return files
    if split == "train" and len(files) == 1 and not _HELD_OUT_WORD.search(labels[0]):
        return files
    raise DataError(
        f"The folder {folder} has no split {split}",
        got="the splits " + ", ".join(sorted(held)) if held else shown([path.name for path in files], 300),
        expected=f"files with {split} as the name of their split",
        do=f"Choose one, as in --rows.split {min(held)}" if held else None,
    )


def split_labels(paths: list[Path]) -> list[str]:
    """The split that each file belongs to: its name without numbers of shards and without the beginning that all share.

    A folder that is named for a split comes before the name of the file.
    """
    words = [_words(path) for path in paths]
    shared = 0
    if len({tuple(own) for own in words}) > 1:
        for same in zip(*words, strict=False):
            if len(set(same)) > 1 or any(_SPLIT_WORD.search(word) for word in same):
                break
            shared += 1
    labels = []
    for path, own in zip(paths, words, strict=True):
        named = [part for part in path.parts[:-1] if _SPLIT_WORD.search(part)]
        rest = own[shared:] or own
        first = next((k for k, word in enumerate(rest) if _SPLIT_WORD.search(word)), 0)
        labels.append(named[-1] if named else "_".join(rest[first:]))
    return labels


def _words(path: Path) -> list[str]:
    stem = path.name.removesuffix(suffix_of(path)) if suffix_of(path) else path.stem
    stem = re.sub(r"-\d+-of-\d+", "", stem)
    words = [word for word in re.split(r"[-_. ]+", stem) if word]
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    return words


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
                got="the splits " + ", ".join(name for name in splits if name),
                expected="one of these splits",
                do=f"Choose one, as in --rows.split {next(filter(None, splits))}",
            )
        rows = _arrow_rows(path)
        if rows is None:
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


def _arrow_rows(folder: Path) -> Iterator[dict[str, object]] | None:
    """The rows of the Arrow files of a saved split; None where they are not simply all rows in order."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_data_files") or state.get("_format_columns"):
        return None
    paths = [folder / file["filename"] for file in state["_data_files"]]
    return chain.from_iterable(arrow_values(path, ".arrow") for path in paths)


# --- the hub ---


def _hub_rows(source: str, split: str, streaming: bool) -> Iterator[RawRow]:
    import datasets

    name, _, config = source.partition(":")
    _ask_hub(source, name)
    try:
        rows = datasets.load_dataset(
            name,
            config or None,
            split=split,
            streaming=streaming,
            download_config=datasets.DownloadConfig(max_retries=1),
        )
        for number, row in enumerate(rows, start=1):
            yield RawRow(file=source, number=number, value=dict(row))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; all are the user's or the network's
        raise _hub_error(source, error) from error


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
    elif isinstance(error, ValueError) and "split" in str(error):
        what, do = (
            f"The data set {source} of the hub has no such split",
            "Choose one of its splits, as in --rows.split NAME, or ",
        )
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
