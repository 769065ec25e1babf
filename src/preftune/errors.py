"""Exceptions a user can meet, and the checks of options that raise them. Each message states what is wrong, what
stood there, what was expected and what to do.
"""

import errno
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST_ADVISED = 2000  # characters of an advice, whose flags must be whole
_MOST_SHOWN = 600
"""Characters of a part of a message: a value of a megabyte is not echoed whole."""


def shown(value: object, limit: int = 80) -> str:
    """A value for a message: its repr (which escapes control characters), cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


_USERINFO = re.compile(r"(?<=://)(?:[^/\s'\"?#]+|[^/\s'\"?#:]+:(?!\d+/)[^\s'\"]*)@")
"""User name and password of an address; a password may hold '/', '?' and '#', where a port and a path do not."""
_QUERY_SECRET = re.compile(
    r"([?&][\w.-]*(?:key|token|secret|passw|sig|auth)[\w.-]*=)[^&\s'\"#]+", re.IGNORECASE
)
_SECRET_VARIABLE = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
_MIN_SECRET = 8  # characters of a variable's value; shorter values are ordinary words


def without_secrets(text: str) -> str:
    """The text with the user names, passwords and keys in its addresses replaced, and with the values of environment
    variables whose names end in KEY, TOKEN, SECRET or PASSWORD: the error of a user's function may quote them.
    """
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "[hidden]")
    return _QUERY_SECRET.sub(r"\1[hidden]", _USERINFO.sub("[hidden]@", text))


def _cut(text: str, most: int = _MOST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


class PreftuneError(Exception):
    """Root of all errors that are the user's to mend; the command line prints the message without a
    traceback.
    """

    exit_code = 2
    saves = False  # whether all processes of a run meet it at the same place, so that they can save a checkpoint together

    def __init__(self, what: str, *, got: object = None, expected: str | None = None, do: str | None = None):
        parts = [_cut(what.rstrip("."))]
        if got is not None:
            parts.append(f"got {_cut(got.rstrip('.')) if isinstance(got, str) else shown(got)}")
        if expected is not None:
            parts.append(f"expected {expected}")
        message = "; ".join(parts) + "."
        self.advice = " ".join(filter(None, (expected, do)))
        if do:
            whole = _cut(do.rstrip("."), _MOST_ADVISED)
            message += f" {whole}" if do.endswith("?") else f" {whole}."
        super().__init__(without_secrets(message))


class ConfigError(PreftuneError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or does not apply."""


class DataError(PreftuneError, ValueError):
    """A data file or one of its rows cannot be used."""


class ModelError(PreftuneError, ValueError):
    """A model or tokenizer cannot be loaded or cannot be scored exactly."""


class StorageError(PreftuneError, OSError):
    """A file cannot be written or read: no space, no permission, a damaged run folder."""

    exit_code = 4

    def __init__(self, what: str, *, got: object = None, expected: str | None = None, do: str | None = None):
        PreftuneError.__init__(self, what, got=got, expected=expected, do=do)


class TrainingError(PreftuneError, RuntimeError):
    """Training stopped before an update: a non-finite loss or gradient, or a check at step 0 that failed."""

    exit_code = 3
    saves = True


class ShortageError(TrainingError):
    """A process ran out of memory, and the others may not have."""

    saves = False


class DivergenceError(TrainingError):
    """A loss or gradient that is not finite: a fact about the settings of a run, where other stops are about
    its surroundings.
    """


class ElsewhereError(TrainingError):
    """Another process of this run stopped and reported why; this process reports nothing."""

    def __init__(self, what: str, saves: bool):
        super().__init__(what)
        self.saves = saves


class LostError(TrainingError):
    """Another process of this run ended without a report."""

    saves = False


class ServerError(PreftuneError, RuntimeError):
    """A server that was queried for completions or judgments refuses, or gives no answer that can be used."""

    exit_code = 5


def check_range(
    options: Any,
    interval: str,
    *names: str,
    prefix: str = "",
    expected: str | None = None,
    do: str | None = None,
) -> None:
    """Refuse a field of `options` that lies outside an interval, written as in mathematics: "[1, inf)".

    None, for a setting that is not given, passes; NaN never does. `prefix` is the section ("collect.");
    `expected` replaces the sentence that follows from the interval.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    words = interval
    if high == math.inf:
        words = f"at least {low:g}" if interval[0] == "[" else f"a number above {low:g}"
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ConfigError(f"{prefix}{name} is out of range", got=value, expected=expected or words, do=do)


def is_given(options: Any, name: str) -> bool:
    """Whether a field of a dataclass differs from its default."""
    from dataclasses import MISSING, fields  # with inspect and ast: not for `preftune --help`

    option = next(option for option in fields(options) if option.name == name)
    default = option.default if option.default_factory is MISSING else option.default_factory()
    return bool(getattr(options, name) != default)


def refuse_idle(
    options: Any,
    where: str,
    *names: str,
    prefix: str = "",
    got: object = None,
    expected: str | None = None,
    do: str = "Leave it out",
) -> None:
    """Refuse the first of these fields that differs from its default, because it has no effect `where`."""
    for name in names:
        if is_given(options, name):
            raise ConfigError(
                f"{prefix}{name} has no effect {where}",
                got=getattr(options, name) if got is None else got,
                expected=expected,
                do=do,
            )


_REMEDIES = {
    errno.ENOSPC: ("a disk with room", "Free some space or choose another folder"),
    errno.EDQUOT: ("room in your quota", "Free some space or choose another folder"),
    errno.EFBIG: ("a file system that holds files of this size", "Choose another folder, or raise ulimit -f"),
    errno.EROFS: ("a folder that can be written", "Choose another folder"),
    errno.EACCES: ("permission", "Change the permissions or choose another folder"),
    errno.EPERM: ("permission", "Change the permissions or choose another folder"),
    errno.EMFILE: ("fewer open files in this process", "Raise the limit of open files: ulimit -n 4096"),
    errno.ENFILE: ("fewer open files on this machine", "Close other programs, or raise fs.file-max"),
    errno.ENOENT: ("a folder that exists", "Was it removed or unmounted? Start again"),
    errno.EEXIST: ("a new or empty folder", "Choose another folder"),
    errno.ENOTDIR: ("a path of folders", "Choose another folder"),
    errno.EIO: ("a disk that works", "Check the disk, or choose another folder"),
    errno.ESTALE: ("a file server that answers", "Mount the folder again, then repeat the command"),
    errno.ENAMETOOLONG: ("a shorter name", "Choose another name"),
    errno.ELOOP: ("a path without a circle of links", "Choose another folder"),
}
"""Error number of the system -> (what was expected, what to do)."""


def storage_error(action: str, path: str | os.PathLike[str], error: OSError) -> StorageError:
    """The StorageError for an operating-system error met while doing `action` ("write the checkpoint") on
    `path`.
    """
    expected, do = _REMEDIES.get(
        error.errno or 0,
        ("a folder that can be written and has room", "Free some space or choose another folder"),
    )
    return StorageError(
        f"Cannot {action} at {os.fspath(path)}", got=error.strerror or str(error), expected=expected, do=do
    )


_LESS_MEMORY = "Lower layout.micro_batch_tokens or rows.max_length, or set gradient_checkpointing true"


@contextmanager
def memory_errors(do: str = _LESS_MEMORY) -> Iterator[None]:
    """Within, running out of memory, on any device, is a TrainingError that names what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
        short = isinstance(error, MemoryError) or any(words in str(error) for words in told)
        if isinstance(error, PreftuneError) or not short:
            raise
        raise ShortageError(
            "There is not enough memory", got=" ".join(str(error).split())[:160] or "no more", do=do
        ) from error
