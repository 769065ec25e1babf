"""Checkpoints: trained weights, optimiser state and counters as safetensors and JSON; each is there whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import StorageError, storage_error


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
    folder: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, counters: Counters, keep: int,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> Path:  # fmt: skip
    """Write folder/step-N, then delete all but the latest `keep`. Each set of tensors in `extra` becomes a file."""
    target = checkpoint_folder(folder, counters.step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".writing-*"):  # by a process that was killed
            shutil.rmtree(left)
        scratch = folder / f".writing-{os.getpid()}"
        scratch.mkdir()
        try:
            save_file({name: p.detach().contiguous() for name, p in parameters.items()}, scratch / "policy.safetensors")
            save_file(_optimiser_tensors(parameters, optimiser), scratch / "optimiser.safetensors")
            for name, tensors in extra.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, scratch / f"{name}.safetensors")
            (scratch / "state.json").write_text(json.dumps(asdict(counters)))
            shutil.rmtree(target, ignore_errors=True)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise storage_error("write the checkpoint", target, cause) from error
    return target


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[Counters, dict[str, dict[str, Tensor]]]:
    """Put weights and optimiser state back, bit for bit; returns the counters and the sets of tensors beside."""
    try:
        weights = load_file(path / "policy.safetensors")
        state = load_file(path / "optimiser.safetensors")
        extra = {name: load_file(path / f"{name}.safetensors") for name in ("reference", "estimators", "source")}
        counters = Counters(**json.loads((path / "state.json").read_text()))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise StorageError(f"The checkpoint {path} is damaged", got=str(error),
                           do="Delete it to go on from an earlier one") from error  # fmt: skip
    if weights.keys() != parameters.keys():
        raise StorageError(f"The checkpoint {path} belongs to another model", got=f"{len(weights)} weights",
                           expected=f"{len(parameters)}")  # fmt: skip
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in state.items():
        name, entry = key.rsplit("|", 1)
        optimiser.state[parameters[name]][entry] = value.to(parameters[name].device)
    return counters, extra


def _optimiser_tensors(parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value.detach().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
