"""Checkpoints of a model in shards: each process writes its part of every tensor into a safetensors file of its
own, any number of processes reads them. No pickle is involved.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

SHARDS = "shards"
"""The folder of what is in shards, in a checkpoint that has any."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Where a part of a tensor begins and how large it is, and the open file that holds it."""

    start: tuple[int, ...]
    size: tuple[int, ...]
    file: Any


def shard_files(world_size: int) -> list[str]:
    """Names of the files that a given number of processes write."""
    return [f"{SHARDS}/{rank:05d}-of-{world_size:05d}.safetensors" for rank in range(world_size)]


def write_part(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """This process's part of the tensors; what every process has whole is written by the first one."""
    rank, size = dist.get_rank(), dist.get_world_size()
    parts: dict[str, Tensor] = {}
    places: dict[str, tuple[list[int], list[int]]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor) and rank:
            continue
        part, start = _local(tensor)
        if part.numel():
            parts[name], places[name] = part.contiguous(), (list(tensor.shape), list(start))
    (folder / SHARDS).mkdir(exist_ok=True)
    save_file(parts, folder / shard_files(size)[rank], metadata={"places": json.dumps(places)})


def _local(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """This process's part of a tensor, and where it begins in the whole."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), (0,) * tensor.ndim
    part = tensor.detach().to_local()  # type: ignore
    chunks = tensor.__create_chunk_list__() if part.numel() else []  # type: ignore[attr-defined]
    return part, tuple(chunks[0].offsets) if chunks else (0,) * tensor.ndim


class ShardReader:
    """The files of all parts, open for reading. Wrong content raises ValueError or KeyError."""

    def __init__(self, folder: Path):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._open = ExitStack()
        for path in sorted((folder / SHARDS).glob("*.safetensors")):
            file = self._open.enter_context(safe_open(path, framework="pt"))
            for name, (shape, start) in json.loads(file.metadata()["places"]).items():
                if self.shapes.setdefault(name, tuple(shape)) != tuple(shape):
                    raise ValueError(f"two shapes of {name}")
                size = tuple(file.get_slice(name).get_shape())
                self._pieces.setdefault(name, []).append(_Piece(start=tuple(start), size=size, file=file))

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor) -> None:
        """Put what is stored under a name into a tensor as it lies in this process, in shards or whole."""
        if self.shapes[name] != tuple(tensor.shape):
            raise ValueError(f"{name} has the shape {self.shapes[name]}, not {tuple(tensor.shape)}")
        part, start = _local(tensor)
        filled = 0
        for piece in self._pieces[name]:
            low = [max(a, b) for a, b in zip(start, piece.start, strict=True)]
            high = [
                min(a + n, b + m)
                for a, n, b, m in zip(start, part.shape, piece.start, piece.size, strict=True)
            ]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, piece.start, strict=True))
            here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))
            value = piece.file.get_slice(name)[there] if there else piece.file.get_tensor(name)
            part[here].copy_(value)
            filled += prod(b - a for a, b in zip(low, high, strict=True))
        if filled != part.numel():
            raise ValueError(f"{part.numel() - filled} entries of {name} are missing")
