"""The run folder: everything that a report, a resume or a reader needs is in its files."""

import errno
import hashlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from preftune.errors import ConfigError, PreftuneError, StorageError, shown, storage_error
from preftune.objectives import Objective, objective_name
from preftune.spec.schema import KEY, SCHEMA
from preftune.spec.strict_yaml import parse_yaml
from preftune.storage import (
    DIGESTS,
    LOCK,
    digests_of,
    encoded,
    is_leftover,
    json_line,
    put_in_place,
    remove,
    sealed,
    sync,
    whole_file,
)
from preftune.text import bytes_text
from preftune.train.checkpoint import LogMark, cause_of

LOGS = ("metrics.jsonl", "completions.jsonl")
"""Files of a run that grow line by line."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths and writers of one run. Without `writes` (in all processes but the main one) nothing is written."""

    path: Path
    writes: bool = True
    followers: list[Callable[[Mapping[str, Any]], None]] = field(
        default_factory=list, compare=False, repr=False
    )  # called with every row of metrics.jsonl
    _logs: dict[str, "_Log"] = field(default_factory=dict, compare=False, repr=False)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        if self.writes:
            with whole_file(self.path / name, f"write {name}") as file:
                file.write_bytes(encoded(text))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """One JSON line, in one write. Of a line that does not fit on the disk nothing stays."""
        if not self.writes:
            return
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()}
        path, line = self.path / name, json_line(clean).encode()
        log = self._log(name)
        try:
            with open(path, "ab", buffering=0) as file:
                if file.write(line) < len(line):
                    os.ftruncate(file.fileno(), log.num_bytes)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise storage_error(f"write {name}", self.path, error) from error
        log.num_bytes += len(line)
        log.digest.update(line)
        for follow in self.followers if name == LOGS[0] else ():
            follow(clean)

    def _log(self, name: str) -> "_Log":
        """What this process knows of a log; of one that is there already, all that is in it."""
        if name not in self._logs:
            path, digest = self.path / name, hashlib.blake2b(digest_size=16)
            with path.open("rb") if path.exists() else io.BytesIO() as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            self._logs[name] = _Log(num_bytes=path.stat().st_size if path.exists() else 0, digest=digest)
        return self._logs[name]

    def log_marks(self) -> dict[str, LogMark]:
        """Length and digest of each log as it is now, synced, for a checkpoint."""
        marks = {}
        for name in LOGS:
            path = self.path / name
            if not path.exists():
                continue
            try:
                log = self._log(name)
                with path.open("rb") as file:
                    sync(file.fileno())
            except OSError as error:
                raise storage_error(f"write {name}", self.path, error) from error
            marks[name] = LogMark(num_bytes=log.num_bytes, digest=log.digest.hexdigest())
        return marks

    def restore_logs(self, step: int, marks: Mapping[str, LogMark] | None, repairs: bool) -> list[str]:
        """Cut the logs to what they held at a checkpoint. A log that held something else is an error, or with
        `repairs` keeps its readable lines up to that step. Returns a sentence for each repaired log.
        """
        told: list[str] = []
        if not self.writes:
            return told
        self._logs.clear()
        for name in LOGS:
            mark = None if marks is None else marks.get(name, LogMark())
            try:
                if mark is None or not self._cut(name, mark):
                    told += self._readable(name, step, repairs, mark is None)
            except StorageError:
                raise
            except OSError as error:
                raise storage_error(f"read {name}", self.path, error) from error
        return told

    def _cut(self, name: str, mark: LogMark) -> bool:
        """Whether the log begins as it was at the mark; if so, it ends there now."""
        path, digest, left = self.path / name, hashlib.blake2b(digest_size=16), mark.num_bytes
        if not path.exists():
            return left == 0
        with path.open("r+b") as file:
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            if left or (mark.num_bytes and digest.hexdigest() != mark.digest):
                return False
            file.truncate(mark.num_bytes)
            sync(file.fileno())
        return True

    def _readable(self, name: str, step: int, repairs: bool, unmarked: bool) -> list[str]:
        """Keep the lines up to a step; lines that cannot be read are an error or are repaired by leaving them
        out. In a log without a mark, only the last line may be cut off by a crash.
        """
        path = self.path / name
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        kept, bad = [], []
        for number, line in enumerate(lines, 1):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                if number < len(lines):
                    bad.append(number)
        if unmarked and not bad:
            with whole_file(path, f"write {name}") as file:
                file.write_bytes(b"".join(kept))
            return []
        got = f"line {bad[0]} that cannot be read" if bad else f"{len(kept)} other lines"
        if not repairs:
            raise StorageError(
                f"{path} is not as the run left it at step {step}",
                got=got if path.exists() else "no such file",
                expected="the lines that the run wrote",
                do="Put the file back, or resume with the lines that can be read: "
                f"preftune train --resume {self.path} --allow-changed log",
            )
        with whole_file(path, f"write {name}") as file:
            file.write_bytes(b"".join(kept))
        return [f"{name} was changed after the checkpoint: {got}; {len(kept)} lines are kept"]

    def set_state(self, state: str, step: int, message: str = "") -> None:
        self.write_json("status.json", {"state": state, "step": step, "message": message})

    def state(self) -> str:
        """As status.json holds it; "running" where that file is missing or damaged: it is written anew."""
        try:
            state = json.loads((self.path / "status.json").read_bytes())["state"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "running"
        return state if isinstance(state, str) else "running"

    def is_complete(self) -> bool:
        """Whether final/ is there, which is the last that needs the model in memory."""
        return self.final.is_dir()

    def install_folder(self, name: str, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a scratch folder, then put it in place under `name`."""
        if not self.writes:
            return self.path / name
        scratch = self.path / f".{name}-{os.getpid()}"
        try:
            remove(scratch)  # of a process of the same number, which was killed
            scratch.mkdir()
            write(scratch)
            (scratch / DIGESTS).write_text(sealed(digests_of(scratch)), encoding="utf-8")
            put_in_place(scratch, self.path / name)
        except (OSError, SafetensorError) as error:
            if isinstance(error, PreftuneError):
                raise
            raise storage_error(f"write {name}/", self.path, cause_of(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.path / name


@dataclass(kw_only=True)
class _Log:
    """State of a log file as this process knows it."""

    num_bytes: int
    digest: Any


def check_output(output: str) -> None:
    """Before any work: the run folder must be new or empty, and its parent must be writable."""
    path = Path(output)
    if not output:
        raise ConfigError("output is empty", expected="a new or empty folder")
    if path.exists() and (not path.is_dir() or _content(path)):
        resumes = path.is_dir() and (path / "config.yaml").is_file()
        raise ConfigError(
            f"The output {output} is there already",
            expected="a new or empty folder",
            do="Choose another --output"
            + (f", or resume the run: preftune train --resume {output}" if resumes else ""),
        )
    parent = next(p for p in [path, *path.absolute().parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        got = f"no permission in {parent}" if parent.is_dir() else f"{parent} is a file"
        raise StorageError(
            f"The output {output} cannot be written",
            got=got,
            expected="a folder that can be written",
            do="Choose another --output",
        )


def _content(folder: Path) -> list[str]:
    """Names in a folder except for its lock and what killed processes left half-written."""
    return [name for name in os.listdir(folder) if name != LOCK and not is_leftover(name)]


def check_room(output: str, needed_bytes: int) -> None:
    """The disk must have room for what the run will write; a run must not fail at its end."""
    parent = next(p for p in [Path(output), *Path(output).absolute().parents] if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise StorageError(
            f"There is no room for the run in {parent}",
            got=f"{bytes_text(free)} free",
            expected=f"{bytes_text(needed_bytes)} for weights and checkpoints",
            do="Free some space or choose another --output",
        )


def create_run(output: str, config: Any, environment: Mapping[str, Any], writes: bool = True) -> RunFolder:
    """Make the folder and write config.yaml."""
    run = RunFolder(path=Path(output), writes=writes)
    if writes:
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the run folder", output, error) from error
    content = {KEY: SCHEMA, **to_plain(config), "environment": dict(environment)}
    run.write_text("config.yaml", yaml.safe_dump(content, sort_keys=False))
    run.set_state("running", 0)
    return run


_CLAIM_ADVICE = "Put the file back, or choose another --output"


def claim_folder(output: str, name: str, settings: Mapping[str, Any]) -> None:
    """Make a folder for several runs with its settings in the file `name`, or find that the same settings
    began it.
    """
    folder = Path(output)
    file = folder / name
    if file.exists():
        try:
            before = parse_yaml(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise StorageError(f"{file} cannot be read", got=str(error), do=_CLAIM_ADVICE) from error
        if not isinstance(before, dict):
            raise StorageError(f"{file} holds no settings", got=shown(before), do=_CLAIM_ADVICE)
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise ConfigError(
                f"{output} was begun with other settings",
                got=f"{changed[0]} {settings[changed[0]]}",
                expected=f"{changed[0]} {before.get(changed[0])}",
                do="Choose another --output",
            )
        return
    if folder.exists() and (not folder.is_dir() or _content(folder)):
        raise ConfigError(
            f"The output {output} is there already",
            expected="a new or empty folder",
            do="Choose another --output",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    with whole_file(file, "write the settings") as path:
        path.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")


def forget_run(run: Path) -> None:
    """Delete the files of a run that never came to a checkpoint; of a link, the link alone."""
    try:
        for path in run.iterdir() if run.is_dir() else []:
            remove(path)
    except OSError as error:
        raise storage_error("start the run again", run, error) from error


def to_plain(config: Any) -> Any:
    """A tree of dataclasses as plain mappings; an objective is its name and its hyperparameters."""
    if isinstance(config, Objective):
        return {"name": objective_name(config), **asdict(config)}  # type: ignore
    if is_dataclass(config):
        return {f.name: to_plain(getattr(config, f.name)) for f in fields(config)}
    return dict(config) if isinstance(config, Mapping) else config


def environment(device: str, num_parameters: int, num_trainable: int) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("preftune", "torch", "transformers", "peft")},
        "git": _git_hash(),
        "device": device,
        **({"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}),
        "num_parameters": num_parameters,
        "num_trainable": num_trainable,
        "command": " ".join(sys.argv),
    }


def _git_hash() -> str | None:
    """Commit of the working directory, when it is a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
