"""The reference's logp of every completion token: computed once and kept on disk, or computed live."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from preftune.errors import ConfigError, StorageError, TrainingError, check_range, refuse_idle, storage_error
from preftune.model.adapters import without_adapter
from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.policy import PROBE, Policy, score_all, score_groups
from preftune.types import Group

RefLogps = list[list[np.ndarray]]
"""[group][completion] -> float32 [tokens]"""


VOCABULARY_SCORES = frozenset({"ref_entropy_share", "kl_from_ref", "kl_to_ref"})
"""Scores that need the reference's distribution over the vocabulary, which is too large to be cached."""
REFERENCE_SCORES = VOCABULARY_SCORES | {"ref_logp"}


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """The anchor of the methods that have one.

    Args:
        mode: "cache" computes its numbers once, before training, and keeps them on disk; "live" keeps a copy
            of the model beside the policy; "adapter" switches the adapter off (with LoRA only); "auto" is the
            cache, unless the objective needs the reference's whole distribution or the reference moves.
        model: another model as reference; by default it is the policy as it starts.
        update_every: steps after which the reference moves towards the policy; 0 keeps it frozen.
        update_rate: how far it moves then, in (0, 1]; 1 makes it a copy of the policy.
        contrast_positive: for methods that weight tokens by a contrast: the model that prefers good tokens.
        contrast_negative: and the one that prefers bad ones.
    """

    mode: Literal["auto", "cache", "live", "adapter"] = "auto"
    model: str | None = None
    update_every: int = 0
    update_rate: float = 1.0
    contrast_positive: str | None = None
    contrast_negative: str | None = None

    def __post_init__(self) -> None:
        if self.mode == "adapter":
            refuse_idle(
                self,
                "with reference.mode adapter",
                "model",
                prefix="reference.",
                do="Use --reference.mode cache or live",
            )
        check_range(self, "[0, inf)", "update_every", prefix="reference.", expected="0 (frozen) or more")
        check_range(self, "(0, 1]", "update_rate", prefix="reference.")
        if not self.update_every:
            refuse_idle(
                self,
                "on a frozen reference",
                "update_rate",
                prefix="reference.",
                do="Set --reference.update_every, or leave it out",
            )
        if self.update_every and self.mode in ("cache", "adapter"):
            raise ConfigError(
                "A reference that moves cannot be cached or share the policy's weights",
                got=f"reference.mode {self.mode}",
                do="Leave out --reference.mode",
            )
        if self.update_every and self.model is not None:
            raise ConfigError(
                "A reference that moves starts as the policy",
                got=f"reference.model {self.model}",
                do="Leave out --reference.model or --reference.update_every",
            )
        if (self.contrast_positive is None) != (self.contrast_negative is None):
            raise ConfigError(
                "A contrast is between two models",
                got="one of contrast_positive and contrast_negative",
                do="Name both, or none",
            )


def weights_digest(model: PreTrainedModel) -> str:
    """Digest of a model's class, configuration that shapes its function, and every weight."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and "version" not in k}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def completion_keys(group: Group) -> list[bytes]:
    """128-bit digests of what a completion's numbers depend on beside the reference: the tokens of prompt and
    completion, and which of them are scored.

    Template, tokenizer and truncation act through the tokens alone.
    """
    prompt = hashlib.blake2b(group.prompt.astype("<i4").tobytes(), digest_size=32).digest()
    keys = []
    for k, completion in enumerate(group.completions):
        scored = group.scored[k].tobytes() if group.scored and not group.scored[k].all() else b""
        kind = b"some scored" if scored else b""  # a mask is never taken for more tokens
        content = prompt + completion.astype("<i4").tobytes() + scored
        keys.append(hashlib.blake2b(content, digest_size=16, person=kind).digest())
    return keys


class ReferenceStore:
    """Per-token logp of one reference on disk: immutable shards, each an index of keys and a flat float32
    file.
    """

    _INDEX = np.dtype([("key", "V16"), ("start", "<i8"), ("length", "<i4")])

    def __init__(self, folder: Path):
        self.folder = folder
        self._found: dict[bytes, tuple[np.ndarray, int, int]] = {}
        for index in sorted(folder.glob("*.index.npy")):
            self._open(index)

    def _open(self, path: Path) -> None:
        try:
            index = np.load(path, allow_pickle=False)
            values = np.load(
                path.with_name(path.name.replace(".index.", ".logp.")), mmap_mode="r", allow_pickle=False
            )
            ends = index["start"] + index["length"]
        except (OSError, ValueError, IndexError, EOFError) as error:
            raise StorageError(
                f"The reference cache {path} is damaged", got=str(error), do="Delete its folder"
            ) from error
        if len(ends) and ends.max() > len(values):
            raise StorageError(
                f"The reference cache {path} is damaged", got="a cut-off file", do="Delete its folder"
            )
        for row in index:
            self._found[row["key"].tobytes()] = (values, int(row["start"]), int(row["length"]))

    def __contains__(self, group: Group) -> bool:
        return all(key in self._found for key in completion_keys(group))

    def get(self, group: Group) -> list[np.ndarray]:
        found = []
        for key, num_scored in zip(completion_keys(group), group.num_scored, strict=True):
            values, start, length = self._found[key]
            if length != num_scored:
                raise StorageError(
                    f"The reference cache {self.folder} is damaged",
                    got=f"{length} tokens",
                    expected=f"{num_scored}",
                    do="Delete its folder",
                )
            found.append(np.asarray(values[start : start + length]))
        return found

    def add(self, groups: Sequence[Group], logps: RefLogps) -> None:
        """Write one more shard; the index is renamed last, so a shard is there whole or not at all."""
        flat = {
            key: logp
            for group, one in zip(groups, logps, strict=True)
            for key, logp in zip(completion_keys(group), one, strict=True)
        }
        lengths = np.array([len(logp) for logp in flat.values()])
        index = np.empty(len(flat), self._INDEX)
        index["key"] = np.frombuffer(b"".join(flat), dtype="V16")
        index["start"], index["length"] = np.cumsum(lengths) - lengths, lengths
        name = hashlib.blake2b(b"".join(flat), digest_size=12).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_array(self.folder / f"{name}.logp.npy", np.concatenate(list(flat.values())).astype("<f4"))
            _write_array(self.folder / f"{name}.index.npy", index)
        except OSError as error:
            raise storage_error("write the reference cache", self.folder, error) from error
        self._open(self.folder / f"{name}.index.npy")


def _write_array(path: Path, array: np.ndarray) -> None:
    scratch = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        with open(scratch, "wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def fill_store(
    store: ReferenceStore,
    reference: Policy,
    groups: Sequence[Group],
    options: LayoutOptions,
    progress: Callable[[int, int], None],
    shard_groups: int = 512,
) -> int:
    """Score the groups that the store does not know yet; returns how many there were. `progress` gets (done,
    of all).

    Processes that hold a part of the model each may have different groups; who has fewer goes along with the
    others.
    """
    places = {
        tuple(completion_keys(group)): place for place, group in enumerate(groups) if group not in store
    }
    missing = list(places.values())
    if missing:
        progress(0, len(missing))
    parts = [missing[start : start + shard_groups] for start in range(0, len(missing), shard_groups)]
    pieces = [
        split_micro_batches([groups[place] for place in part], options, reference.sharing) for part in parts
    ]
    idle, done = reference.behind(sum(map(len, pieces))), 0
    for chosen in parts:
        part = [groups[place] for place in chosen]
        logps = score_all(reference, part, options, lambda n, of, done=done: progress(done + n, len(missing)))
        store.add(part, logps)
        done += len(part)
    for _ in range(idle):
        score_groups(reference, [PROBE], options)
    return len(missing)


@contextmanager
def adapter_off(policy: Policy) -> Iterator[None]:
    """Within, the policy is its own start: the model without its adapter."""
    with without_adapter(policy.peft_model):
        yield


def check_equal(
    expected: RefLogps, got: RefLogps, groups: Sequence[Group], tolerance: float, what: str, do: str
) -> float:
    """Mean |difference| per token of the worst completion, between numbers that must be equal; stops if they
    are not.
    """
    gaps = [
        (float(np.mean(np.abs(a - b))), group.origin)
        for one, two, group in zip(expected, got, groups, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    worst, origin = max(gaps, key=lambda gap: (gap[0] != gap[0], gap[0]))  # NaN is the worst of all
    if not worst <= tolerance:
        raise TrainingError(
            f"{what} (worst at {origin})",
            got=f"a mean difference of {worst:.3g} nats per token",
            expected=f"at most {tolerance:.1g}",
            do=do,
        )
    return worst
