"""The run folder: everything that a report, a resume or a reader needs is in its files."""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from preftune.errors import ConfigError, StorageError, storage_error
from preftune.objectives import OBJECTIVES, objective_name
from preftune.storage import json_line, whole_file


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths and writers of one run. Without `writes` (in all processes but the main one) nothing is written."""

    path: Path
    writes: bool = True

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"

    def write_text(self, name: str, text: str) -> None:
        """Whole or not at all."""
        if not self.writes:
            return
        try:
            scratch = self.path / f".{name}-{os.getpid()}"
            try:
                scratch.write_text(text, encoding="utf-8")
                os.replace(scratch, self.path / name)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(f"write {name}", self.path, error) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """One JSON line, in one write, so that a reader or a crash never sees half a line followed by
        another.
        """
        if not self.writes:
            return
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()}
        try:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(json_line(clean))
        except OSError as error:
            raise storage_error(f"write {name}", self.path, error) from error

    def set_state(self, state: str, step: int, message: str = "") -> None:
        self.write_json("status.json", {"state": state, "step": step, "message": message})

    def state(self) -> str:
        try:
            return json.loads((self.path / "status.json").read_text())["state"]
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{self.path} is not a run folder", got=str(error), expected="status.json in it"
            ) from error

    def forget_after(self, step: int) -> None:
        """Drop metrics and completions of steps that a resumed run will do again."""
        for name in ("metrics.jsonl", "completions.jsonl"):
            if not (self.path / name).exists():
                continue
            kept = []
            for line in (self.path / name).read_text(encoding="utf-8").split("\n"):
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except ValueError:  # the line that a crash cut off, and the end
                    continue
            self.write_text(name, "".join(line + "\n" for line in kept))

    def install_folder(self, name: str, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a scratch folder, then put it in place under `name`."""
        if not self.writes:
            return self.path / name
        scratch = self.path / f".{name}-{os.getpid()}"
        try:
            scratch.mkdir()
            write(scratch)
            shutil.rmtree(self.path / name, ignore_errors=True)
            scratch.rename(self.path / name)
        except (OSError, SafetensorError) as error:
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise storage_error(f"write {name}/", self.path, cause) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.path / name


def check_output(output: str) -> None:
    """Before any work: the run folder must be new or empty, and its parent must be writable."""
    path = Path(output)
    if not output:
        raise ConfigError("output is empty", expected="a new or empty folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"The output {output} is there already",
            expected="a new or empty folder",
            do=f"Choose another --output, or go on with: preftune train --resume {output}",
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


def check_room(output: str, needed_bytes: int) -> None:
    """The disk must have room for what the run will write; a run must not fail at its end."""
    parent = next(p for p in [Path(output), *Path(output).absolute().parents] if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise StorageError(
            f"There is no room for the run in {parent}",
            got=f"{free / 1e9:.2f} GB free",
            expected=f"{needed_bytes / 1e9:.2f} GB for weights and checkpoints",
            do="Free some space or choose another --output",
        )


def create_run(output: str, config: Any, environment: Mapping[str, Any], writes: bool = True) -> RunFolder:
    """Make the folder and write config.yaml."""
    run = RunFolder(path=Path(output), writes=writes)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the run folder", output, error) from error
    run.write_text(
        "config.yaml", yaml.safe_dump({**to_plain(config), "environment": dict(environment)}, sort_keys=False)
    )
    run.set_state("running", 0)
    return run


def claim_folder(output: str, name: str, settings: Mapping[str, Any]) -> None:
    """Make a folder for several runs with its settings in the file `name`, or find that the same settings
    began it.
    """
    folder = Path(output)
    file = folder / name
    if file.exists():
        try:
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise StorageError(f"{file} cannot be read", got=str(error)) from error
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise ConfigError(
                f"{output} was begun with other settings",
                got=f"{changed[0]} {settings[changed[0]]}",
                expected=f"{changed[0]} {before.get(changed[0])}",
                do="Choose another --output",
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
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
    """Files of a run that never came to a checkpoint."""
    for path in sorted(run.rglob("*"), reverse=True) if run.exists() else []:
        path.rmdir() if path.is_dir() else path.unlink()


def to_plain(config: Any) -> Any:
    """A tree of dataclasses as plain mappings; an objective is its name and its hyper-parameters."""
    if type(config) in OBJECTIVES.values():
        return {"name": objective_name(config), **asdict(config)}
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
