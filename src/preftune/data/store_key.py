"""What the groups of a source depend on, as one name: a store under another name cannot be used by mistake."""

import hashlib
import json
import re
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.data.fast_tokens import fastokens
from preftune.data.memory import MEMORY
from preftune.data.names import suffix_of
from preftune.data.options import DataOptions
from preftune.data.vocabulary import missing_rows

_CODE = ("data", "types.py", "errors.py")  # of this package: what makes groups
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy", *(["fastokens"] if fastokens else []))
_NOT_ALWAYS_THE_SAME = re.compile(r"strftime_now|random|lipsum")  # in a template
_PIECE = 1 << 20  # bytes


def store_key(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    signal: str | None,
    options: DataOptions,
    passed: bool = False,
) -> str | None:
    """A digest of the source's name and content, the tokenizer, its template, the options, the code and its
    libraries.

    None where one of them cannot be told: a source that is no file or folder, a tokenizer that is not made of
    data alone, a template that does not always write the same.
    """
    told = _told_tokenizer(tokenizer)
    paths = source_files(source)
    if told is None or not (paths or source.startswith(MEMORY)):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in (source, signal, passed, json.dumps(asdict(options), sort_keys=True), _code(), *told):
        digest.update(repr(part).encode() + b"\n")
    try:
        for path in paths:
            digest.update(f"{path} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
    except OSError:  # reading the rows will report it
        return None
    return digest.hexdigest()


def source_files(source: str) -> list[Path]:
    """The files of a local source, which its rows are in; empty for a data set of the hub."""
    if source.startswith(MEMORY):
        return []
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    return (
        sorted(file for file in path.rglob("*") if suffix_of(file) and file.is_file())
        if path.is_dir()
        else []
    )


def stamps(source: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the last change of a source's files."""
    found = [(str(path), path.stat()) for path in source_files(source)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _told_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...] | None:
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not kind.__module__.startswith("transformers."):
        return None
    template = tokenizer.chat_template
    if _NOT_ALWAYS_THE_SAME.search(repr(template)):
        return None
    try:
        engine = tokenizer.backend_tokenizer.to_str()
    except Exception:  # a step that the user wrote in Python has no digest
        return None
    specials = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return (
        kind.__qualname__,
        template,
        specials,
        tokenizer.split_special_tokens,
        missing_rows(tokenizer),
        hashlib.blake2b(engine.encode()).hexdigest(),
    )


@cache
def _code() -> str:
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b()
    for name in _CODE:
        path = root / name
        for file in sorted([*path.glob("*.py"), *path.glob("*/*.jinja")]) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name} {version(name)}" for name in _LIBRARIES)])
