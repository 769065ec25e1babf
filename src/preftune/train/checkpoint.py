"""Checkpoints: trained weights, optimizer state and counters; each is there whole or not at all.

Safetensors and JSON, written by one process. Of a model in shards, every process writes its part of weights
and moments in the format of torch.distributed.checkpoint, which any number of processes reads. Either kind
can be resumed with and without shards.
"""

import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from preftune.errors import StorageError, storage_error
from preftune.model.shard import like
from preftune.train.optimizers import put_special, state_tensors

SHARDS = "shards"
"""The folder of what is in shards, in a checkpoint that has any."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What a run has done so far, for comparing methods on any axis."""

    step: int = 0
    num_tokens: int = 0  # positions computed by the policy in training, padding not counted
    prompts_seen: int = 0
    samples_drawn: int = 0
    reward_queries: int = 0
    seconds: float = 0.0  # of the steps and of what was drawn for them; evaluations and saving not counted


def save_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    keep: int,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    """Write folder/step-N, then delete all but the latest `keep`. Each set of tensors in `extra` becomes a
    file.
    """
    scratch = begin_checkpoint(folder)
    tensors = {"policy": {name: p.detach() for name, p in parameters.items()}} | {
        "optimiser": state_tensors(parameters, optimizer)
    }
    return end_checkpoint(scratch, counters, keep, tensors | dict(extra))


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
    scratch: Path, counters: Counters, keep: int, tensors: Mapping[str, Mapping[str, Tensor]]
) -> Path:
    """Write what is missing, a file for each set of tensors; put the folder in place, and delete all but the
    latest `keep`.
    """
    folder = scratch.parent
    target = checkpoint_folder(folder, counters.step)
    try:
        for name, one in tensors.items():
            save_file(
                {key: value.contiguous() for key, value in one.items()}, scratch / f"{name}.safetensors"
            )
        (scratch / "state.json").write_text(json.dumps(asdict(counters)))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(scratch, target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise storage_error("write the checkpoint", target, cause) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def write_shards(
    scratch: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    reference: Mapping[str, Tensor],
) -> None:
    """By all processes, on a disk that all see: weights, moments and the reference that follows, in shards,
    into `scratch`.
    """
    tensors = {f"policy|{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"optimiser|{key}": value for key, value in state_tensors(parameters, optimizer).items()}
    tensors |= {f"reference|{name}": value for name, value in reference.items()}
    try:
        save(dict(tensors), checkpoint_id=scratch / SHARDS)
    except CheckpointException as error:  # of one process or several; it is no Exception
        told = "; ".join(str(wrapped[0]) for wrapped in error.failures.values())
        raise storage_error("write the checkpoint", scratch.parent, OSError(told)) from error


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    reference: Mapping[str, Tensor],
) -> tuple[Counters, dict[str, dict[str, Tensor]]]:
    """Put weights, optimizer state and the reference that follows back, bit for bit; returns the counters and
    the sets of tensors beside.
    """
    in_shards = (path / SHARDS).is_dir()
    try:
        extra = {name: load_file(path / f"{name}.safetensors") for name in ("estimators", "source")}
        counters = Counters(**json.loads((path / "state.json").read_text()))
        if in_shards:
            _read_shards(path, parameters, optimizer, reference)
        else:
            _read_files(path, parameters, optimizer, reference)
    except StorageError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        SafetensorError,
        UnpicklingError,
        CheckpointException,
    ) as error:
        raise StorageError(
            f"The checkpoint {path} is damaged",
            got=str(error) or type(error).__name__,
            do="Delete it to go on from an earlier one",
        ) from error
    return counters, extra


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
    stored = FileSystemReader(path / SHARDS).read_metadata().state_dict_metadata
    _check_names(path, [key.split("|", 1)[1] for key in stored if key.startswith("policy|")], parameters)
    wanted = {f"policy|{name}": p.detach() for name, p in parameters.items()}
    wanted |= {f"reference|{name}": value for name, value in reference.items()}
    for key in (key for key in stored if key.startswith("optimiser|")):
        name, entry = key.split("|", 1)[1].rsplit("|", 1)
        parameter, shape = parameters[name], cast(TensorStorageMetadata, stored[key]).size
        empty = (
            torch.zeros_like(parameter)
            if shape == parameter.shape
            else torch.zeros(shape, device=parameter.device)
        )
        optimizer.state[parameter][entry] = wanted[key] = empty.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*assuming the intent is to load in a single process", category=UserWarning
        )
        load(wanted, checkpoint_id=path / SHARDS, no_dist=not dist.is_initialized())
