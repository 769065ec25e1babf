"""The reference's logp of every completion token: computed once and kept on disk, or computed live."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from preftune.errors import ConfigError, TrainingError, check_range, refuse_idle
from preftune.model.adapters import without_adapter
from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.policy import PROBE, Policy, score_all, score_groups
from preftune.model.quantize import tensor_parts
from preftune.model.reference_store import ReferenceStore, RefLogps, completion_keys
from preftune.types import Group

VOCABULARY_SCORES = frozenset({"ref_entropy_share", "kl_from_ref", "kl_to_ref"})
"""Scores that need the reference's distribution over the vocabulary, which is too large to be cached."""
REFERENCE_SCORES = VOCABULARY_SCORES | {"ref_logp"}


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """The anchor of the methods that have one.

    Args:
        mode: "cache" computes its numbers once, before training, and keeps them on disk; "live" keeps a
            copy of the model in addition to the policy; "adapter" switches the adapter off (with LoRA
            only); "auto" is the cache, unless the objective needs the reference's whole distribution or the
            reference moves.
        model: another model as reference; by default it is the policy as it starts.
        update_every: steps after which the reference moves toward the policy; 0 keeps it frozen.
        update_rate: how far it moves then, in (0, 1]; 1 makes it a copy of the policy.
        contrast_positive: for methods that weight tokens by a contrast: the model that prefers good tokens.
        contrast_negative: and the one that prefers bad completions.
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
        for part in tensor_parts(tensor.detach()):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    """Disable the adapter within the context: the policy is its own reference."""
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
