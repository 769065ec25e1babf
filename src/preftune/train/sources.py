"""Sources of the groups of each step."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from torch import Tensor

from preftune.data.store import SomeGroups
from preftune.types import Group


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """The groups of a step, and what it took to get them."""

    groups: list[Group]
    prompts_seen: int = 0
    samples_drawn: int = 0
    reward_queries: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    completions: tuple[
        Mapping[str, object], ...
    ] = ()  # drawn for this step: prompt, completions, rewards, for the run folder


def num_steps_of(num_groups: int, batch_size: int, least: int = 1) -> int:
    """Steps of a pass over some groups. The last step takes the remainder; a remainder of fewer than `least`
    groups joins the step before it.
    """
    whole, rest = divmod(num_groups, batch_size)
    return whole + (rest >= least or not whole) if rest else whole


def step_slice(place: int, num_groups: int, batch_size: int, least: int = 1) -> slice:
    """The groups of step 0, 1, ... of a pass."""
    last = place == num_steps_of(num_groups, batch_size, least) - 1
    return slice(place * batch_size, num_groups if last else (place + 1) * batch_size)


@dataclass(frozen=True, kw_only=True)
class OfflineSource:
    """A fixed collection, every group once per epoch, in an order that the seed and the epoch determine.

    It has no state: the groups of a step follow from the step's number, so a resumed run sees what it would
    have seen.
    """

    groups: Sequence[Group]
    batch_size: int
    seed: int
    least: int = 1  # groups of a step; a smaller remainder joins the step before it

    @property
    def steps_per_epoch(self) -> int:
        return num_steps_of(len(self.groups), self.batch_size, self.least)

    def supply(self, step: int) -> Taken:
        """Groups of step 1, 2, ..."""
        groups = self.take(step)
        return Taken(groups=groups, prompts_seen=len(groups))

    def draws(self, step: int) -> int:
        """Completions to draw for a step: none, they are there."""
        return 0

    def state(self) -> dict[str, Tensor]:
        """Nothing: what comes next follows from the step."""
        return {}

    def take(self, step: int) -> list[Group]:
        """Groups of step 1, 2, ...; the last step of an epoch takes what is left."""
        return [self.groups[i] for i in self._places(step)]

    def _places(self, step: int) -> np.ndarray:
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        part = step_slice(position, len(self.groups), self.batch_size, self.least)
        return _order(self.seed, epoch, len(self.groups))[part]

    def visited(self, num_steps: int) -> Sequence[Group]:
        """Groups that a run of a given number of steps comes by, each once."""
        if num_steps >= self.steps_per_epoch:
            return self.groups
        places = [self._places(step) for step in range(1, num_steps + 1)]
        return SomeGroups(groups=self.groups, places=np.concatenate(places or [np.arange(0)]))


@lru_cache(maxsize=2)  # the epochs on either side of a step
def _order(seed: int, epoch: int, num_groups: int) -> np.ndarray:
    """The groups of an epoch in their order. Made once an epoch: at each step it would cost more than the step."""
    order = np.random.default_rng([seed, epoch]).permutation(num_groups)
    order.flags.writeable = False  # all callers share it
    return order


def hold_out(groups: Sequence[Group], fraction: float, seed: int) -> tuple[Sequence[Group], Sequence[Group]]:
    """(training, held-out) groups. All groups of one prompt fall on the same side, so nothing leaks."""
    if not fraction:
        return groups, ()
    digests = bytearray()
    for group in groups:
        digests += hashlib.blake2b(
            seed.to_bytes(8, "little") + group.prompt.tobytes(), digest_size=16
        ).digest()
    halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    prompts, number = np.unique(halves, axis=0, return_inverse=True)  # in the order of the digests
    count = min(round(fraction * len(prompts)), len(prompts) - 1)  # at least one prompt is trained on
    held = number.reshape(-1) < count
    return SomeGroups(groups=groups, places=np.flatnonzero(~held)), SomeGroups(
        groups=groups, places=np.flatnonzero(held)
    )
