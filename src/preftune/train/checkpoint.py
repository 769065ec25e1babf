"""Checkpoints: trained weights, optimizer state and counters; each is there whole or not at all.

Safetensors and JSON, written by one process. Of a model in shards, every process writes its part of weights
and moments (`checkpoint_shards`). Either kind can be resumed with and without shards.

`state.json` holds the digests of all other files and of itself, so that a checkpoint is verified before it is
used. It is written last into a temporary folder, which is synced and renamed; only then are older checkpoints
deleted.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import StorageError, shown, storage_error
from preftune.model.shard import like
from preftune.storage import digests_of, first_damage, put_in_place, sealed, unsealed
from preftune.train.checkpoint_shards import SHARDS, ShardReader, write_part
from preftune.train.optimizers import put_special, state_tensors

STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")
_MOST = 2**62  # of any counter


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counters of a run: steps, samples, tokens, seconds."""

    step: int = 0
    num_tokens: int = 0  # positions computed by the policy in training, padding not counted
    prompts_seen: int = 0
    samples_drawn: int = 0
    reward_queries: int = 0
    seconds: float = 0.0  # of the steps and of what was drawn for them; evaluations and saving not counted


@dataclass(frozen=True, kw_only=True)
class LogMark:
    """How long a log was when a checkpoint was written, and the digest of what it held."""

    num_bytes: int = 0
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What state.json holds. `logs` and `digests` are None in a checkpoint of a version that wrote none."""

    counters: Counters
    logs: Mapping[str, LogMark] | None = field(default_factory=dict)
    digests: Mapping[str, str] | None = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    keep: int,
    extra: Mapping[str, Mapping[str, Tensor]],
    logs: Mapping[str, LogMark] | None = None,
) -> Path:
    """Write folder/step-N, then delete all but the latest `keep`. Each set of tensors in `extra` becomes a
    file.
    """
    scratch = begin_checkpoint(folder)
    tensors = {"policy": {name: p.detach() for name, p in parameters.items()}} | {
        "optimiser": state_tensors(parameters, optimizer)
    }
    return end_checkpoint(scratch, counters, keep, tensors | dict(extra), logs or {})


def begin_checkpoint(folder: Path) -> Path:
    """A scratch folder for the next one; what a process left that was killed is deleted."""
    scratch = folder / f".writing-{os.getpid()}"
    try:
        for left in folder.glob(".writing-*"):
            shutil.rmtree(left)
        scratch.mkdir(parents=True)
    except OSError as error:
        raise storage_error("write the checkpoint", folder, error) from error
    return scratch


def end_checkpoint(
    scratch: Path,
    counters: Counters,
    keep: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    logs: Mapping[str, LogMark],
    shards: Collection[str] = (),
) -> Path:
    """Write what is missing, a file for each set of tensors, and the digests of all files; put the folder in
    place, and delete all but the latest `keep`. `shards` are the files that all processes should have written.
    """
    folder = scratch.parent
    target = checkpoint_folder(folder, counters.step)
    try:
        if absent := [name for name in shards if not (scratch / name).is_file()]:
            raise StorageError(
                f"The checkpoint {target} lacks the part of another process",
                got=f"no file {absent[0]}",
                expected="a run folder on a disk that all processes share",
                do="Choose another --output",
            )
        for name, one in tensors.items():
            save_file(
                {key: value.contiguous() for key, value in one.items()}, scratch / f"{name}.safetensors"
            )
        content = {
            "counters": asdict(counters),
            "logs": {name: asdict(mark) for name, mark in logs.items()},
            "digests": digests_of(scratch),
        }
        (scratch / STATE).write_text(sealed(content), encoding="utf-8")
        put_in_place(scratch, target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    except StorageError:
        raise
    except (OSError, SafetensorError) as error:
        raise storage_error("write the checkpoint", target, cause_of(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def write_shards(
    scratch: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    reference: Mapping[str, Tensor],
) -> None:
    """By every process, on a disk that all see: its part of weights, moments and the reference that follows."""
    tensors = {f"policy|{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"optimiser|{key}": value for key, value in state_tensors(parameters, optimizer).items()}
    tensors |= {f"reference|{name}": value for name, value in reference.items()}
    try:
        write_part(scratch, tensors)
    except (OSError, SafetensorError) as error:
        raise storage_error("write the checkpoint", scratch.parent, cause_of(error)) from error


def cause_of(error: Exception) -> OSError:
    """An error of safetensors names the system's error in its text alone."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    steps = {
        int(found[1]): path
        for path in folder.glob("step-*")
        if (found := _NAME.fullmatch(path.name)) and (path / STATE).is_file()
    }
    return [steps[step] for step in sorted(steps)]


# --- reading ---


def read_state(path: Path) -> CheckpointState:
    """The state of a checkpoint whose files are all as they were written; a StorageError names what is not."""
    try:
        state = _state(path)
        damage = None if state.digests is None else first_damage(path, state.digests)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    if damage:
        raise _damaged(path, damage)
    return state


def _damaged(path: Path, got: str) -> StorageError:
    return StorageError(
        f"The checkpoint {path} is damaged",
        got=got,
        do="To continue from the latest whole checkpoint, or from the start if none is whole: "
        f"preftune train --resume {path.parent.parent} --skip-damaged",
    )


def _state(path: Path) -> CheckpointState:
    """Content of state.json, every value checked."""
    text = (path / STATE).read_bytes()
    plain = json.loads(text) if b'"digest"' not in text else unsealed(text)
    if not isinstance(plain, dict):
        raise ValueError(f"{STATE} holds no state")
    if "counters" not in plain:  # of a version without digests
        state = CheckpointState(counters=_counters(plain), logs=None, digests=None)
    else:
        logs, digests = plain.get("logs"), plain.get("digests")
        if not isinstance(logs, dict) or not _are_texts(digests):
            raise ValueError(f"{STATE} holds no digests")
        marks = {name: _mark(mark) for name, mark in logs.items()}
        state = CheckpointState(counters=_counters(plain["counters"]), logs=marks, digests=digests)
    if checkpoint_folder(path.parent, state.counters.step).name != path.name:
        raise ValueError(f"step {state.counters.step} in {STATE}")
    return state


def _are_texts(plain: Any) -> bool:
    return isinstance(plain, dict) and all(isinstance(value, str) for value in plain.values())


def _mark(plain: Any) -> LogMark:
    if not isinstance(plain, dict) or set(plain) != {"num_bytes", "digest"}:
        raise ValueError(f"a log without its length and digest in {STATE}")
    size, digest = plain["num_bytes"], plain["digest"]
    if type(size) is not int or not 0 <= size < _MOST or not isinstance(digest, str):
        raise ValueError(f"a log of {shown(size, 40)} bytes in {STATE}")
    return LogMark(num_bytes=size, digest=digest)


def _counters(plain: Any) -> Counters:
    names = {one.name for one in fields(Counters)}
    if not isinstance(plain, dict) or set(plain) != names:
        raise ValueError(f"other counters in {STATE} than {', '.join(sorted(names))}")
    for name, value in plain.items():
        kind = int | float if name == "seconds" else int
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 <= value < _MOST:
            raise ValueError(f"{name} {str(value)[:40]} in {STATE}")
    if not math.isfinite(plain["seconds"]):
        raise ValueError(f"seconds that are not finite in {STATE}")
    return Counters(**{**plain, "seconds": float(plain["seconds"])})


def load_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    reference: Mapping[str, Tensor],
    state: CheckpointState | None = None,
) -> tuple[Counters, dict[str, dict[str, Tensor]]]:
    """Put weights, optimizer state and the reference that follows back, bit for bit; returns the counters and
    the other sets of tensors. `state` is what `read_state` returned, if the files have been verified.
    """
    state = state or read_state(path)
    try:
        extra = {
            name: load_file(path / f"{name}.safetensors")
            for name in ("estimators", "source", "best")
            if name != "best" or (path / "best.safetensors").is_file()
        }
        if (path / SHARDS / ".metadata").exists():
            raise StorageError(
                f"The checkpoint {path} was written by an older version in a format that executes code when read",
                got=f"{SHARDS}/.metadata",
                expected="safetensors",
                do="Resume it with the version that wrote it",
            )
        if (path / SHARDS).is_dir():
            _read_shards(path, parameters, optimizer, reference)
        else:
            _read_files(path, parameters, optimizer, reference)
    except StorageError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, (str(error) or type(error).__name__)[:200]) from error
    return state.counters, extra


def _check_names(path: Path, found: Collection[str], parameters: Collection[str]) -> None:
    if set(found) != set(parameters):
        raise StorageError(
            f"The checkpoint {path} belongs to another model",
            got=f"{len(found)} weights",
            expected=f"{len(parameters)}",
        )


def _read_files(path: Path, parameters, optimizer, reference) -> None:
    weights, state, followed = (
        load_file(path / f"{name}.safetensors") for name in ("policy", "optimiser", "reference")
    )
    _check_names(path, weights, parameters)
    with torch.no_grad():
        for values, tensors in ((weights, parameters), (followed, reference)):
            for name, tensor in tensors.items():
                if values[name].shape != tensor.shape:
                    raise ValueError(f"{name} of the shape {tuple(values[name].shape)}")
                tensor.copy_(like(values[name], tensor))
    for key, value in put_special(optimizer, parameters, state).items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        per_weight = value.shape == parameter.shape
        optimizer.state[parameter][entry] = (
            like(value, parameter) if per_weight else value.to(parameter.device)
        )


def _read_shards(path: Path, parameters, optimizer, reference) -> None:
    """Into tensors as they lie in this process, in shards or whole."""
    with ShardReader(path) as reader:
        stored = [key.split("|", 1) for key in reader.shapes]
        _check_names(path, [name for kind, name in stored if kind == "policy"], parameters)
        for name, parameter in parameters.items():
            reader.fill(f"policy|{name}", parameter.detach())
        for name, tensor in reference.items():
            reader.fill(f"reference|{name}", tensor)
        for key in (key for kind, key in stored if kind == "optimiser"):
            name, entry = key.rsplit("|", 1)
            parameter, shape = parameters[name], reader.shapes[f"optimiser|{key}"]
            empty = (
                torch.zeros_like(parameter)
                if shape == tuple(parameter.shape)
                else torch.zeros(shape, device=parameter.device)
            )
            optimizer.state[parameter][entry] = value = empty.detach()
            reader.fill(f"optimiser|{key}", value)
