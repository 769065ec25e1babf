"""Several processes that train one model together, each on its share of every step: what they must know of
one another.

Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. Every process reads the same data and knows
every group of a step; it computes a share of them, and gradients are summed before the update, so that all
have the same weights at all times.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from preftune.errors import ConfigError, ElsewhereError, LostError, PreftuneError
from preftune.model.skeleton import from_skeleton, skeleton

T = TypeVar("T")

_BUCKET = 2**24
"""Entries of gradients that are summed at once."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process and how many there are. Alone, everything here is the identity and costs nothing."""

    rank: int = 0
    size: int = 1
    # the model is in shards: its passes are passes of all, and backward sums its gradients
    lockstep: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Which of the pieces with these sizes this process computes: each, largest first, goes to the least
        loaded process.
        """
        if self.size == 1:
            return list(range(len(sizes)))
        loads, mine = [0] * self.size, []
        for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += sizes[index]
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)

    def gather(self, mine: T) -> list[T]:
        """Gather an object of each process, in rank order. Tensors must be on the CPU, because processes have
        different GPUs.
        """
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def total(self, mine: float | int) -> float:
        """The sum over all processes, the same bits in each of them."""
        return float(mine) if self.size == 1 else float(sum(self.gather(mine)))

    def any(self, mine: bool) -> bool:
        return mine if self.size == 1 else any(self.gather(mine))

    def from_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process and send the result to all; an error is raised in all processes."""
        if self.size == 1:
            return work()
        made: list[Any] = [None]
        failed: PreftuneError | None = None
        if self.is_main:
            try:
                made = [work()]
            except PreftuneError as error:
                failed = error
        self.agree(failed)
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def models_from_main(self, work: Callable[[], T]) -> T:
        """`from_main` for models that will be cut into shards. Their weights stay in the main process; the other
        processes get the model on the meta device, and its weights from `cut_up`. Every process loads the model
        itself if pickle cannot send it, such as one with code from its own folder.
        """
        if not self.lockstep:
            return work()
        kept: list[T] = []

        def packed() -> bytes:
            kept.append(work())
            try:
                return skeleton((kept[0], torch.get_rng_state()))
            except (pickle.PicklingError, AttributeError, TypeError):
                return b""

        content = self.from_main(packed)
        if kept:
            return kept[0]
        if not content:
            return work()
        try:
            made, state = from_skeleton(content)
        except (ImportError, AttributeError):
            return work()
        torch.set_rng_state(state)
        return made

    def agree(self, error: PreftuneError | None) -> None:
        """Raise the error if any process has one: its own sentence where it arose first, and silence
        elsewhere.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        told = self.gather(None if error is None else (type(error).__name__, error.saves))
        first = next(((rank, *one) for rank, one in enumerate(told) if one is not None), None)
        if first is None:
            return
        rank, name, saves = first
        if error is not None and rank == self.rank:
            raise error
        raise ElsewhereError(f"Process {rank} stopped: {name}", saves)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes its sum over all processes; one that a process does not have counts as 0."""
        if self.size == 1 or self.lockstep:
            return
        trained = list(parameters)
        known = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32)
        for flags in self.gather(known):
            known = known | flags
        waiting: list[nn.Parameter] = []
        for parameter, anywhere in zip(trained, known.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            waiting.append(parameter)
            if sum(p.numel() for p in waiting) >= _BUCKET:
                _sum_bucket(waiting)
                waiting = []
        if waiting:
            _sum_bucket(waiting)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients together; of gradients in shards, that of what they are shards of."""
        found: Any = torch.nn.utils.get_total_norm(gradients)
        return found.full_tensor() if self.lockstep else found

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)


ALONE = Processes()


def _sum_bucket(parameters: Sequence[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def together(minutes: float, environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Within, the processes that torchrun started are connected: by NCCL on GPUs, by gloo elsewhere. A
    process that waits for another one longer than a given number of minutes, or for one that is gone, stops with a
    LostError.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        _take_gpu(int(environment.get("LOCAL_RANK", "0")), torch.cuda.device_count())
    # What is not on a GPU (objects, offloaded weights) goes by gloo there too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=timedelta(minutes=minutes))
    found = Processes(rank=dist.get_rank(), size=size)
    try:
        with lost_errors(found, "repeat the command, or resume the run if its folder holds a checkpoint"):
            yield found
    finally:
        dist.destroy_process_group()


@contextmanager
def lost_errors(processes: Processes, do: str) -> Iterator[None]:
    """Within, the error of a collective operation that another process did not take part in is a LostError. `do`
    states how the run continues.
    """
    try:
        yield
    except RuntimeError as error:
        if processes.size == 1 or not _is_lost(error):
            raise
        raise LostError(
            f"Process {processes.rank} lost another process of the run",
            got=next((words for words in _LOST if words in str(error)), "a collective operation that failed"),
            do=f"See what that process or torchrun reported, then {do}",
        ) from error


def _take_gpu(local_rank: int, count: int) -> None:
    if local_rank >= count:
        raise ConfigError(
            "There are more processes than GPUs on this host",
            got=f"{count} GPUs and a process {local_rank}",
            do=f"Start at most --nproc_per_node {count}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to use CPUs",
        )
    torch.cuda.set_device(local_rank)


_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out",
    "timed out",
    "Connection refused",
)
"""What gloo says, in words alone, when another process did not come."""


def _is_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process did not come."""
    return not isinstance(error, PreftuneError) and (
        isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)
    )
