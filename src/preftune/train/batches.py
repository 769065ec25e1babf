"""From groups to what a step consumes, and from that to the scores that an objective sees."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preftune.data.pack import LayoutOptions, batch_signal, collate, split_micro_batches
from preftune.objectives import Objective
from preftune.policy.policy import Policy, score
from preftune.policy.reference import RefLogps
from preftune.train.step import MicroBatch
from preftune.types import Batch, Group, Signal, TokenScores

ReferenceLogps = Callable[[Sequence[Group]], RefLogps]
"""The reference's logp of the completion tokens of some groups (one micro-batch at most)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedContent:
    """Content of a micro-batch for a language model."""

    groups: tuple[Group, ...]
    batch: Batch


def cut_step(
    groups: Sequence[Group], kind: type[Signal], policy: Policy, layout: LayoutOptions
) -> list[MicroBatch]:
    """A step's groups as packed micro-batches on the policy's device."""
    pieces = []
    for indices in split_micro_batches(groups, layout, policy.sharing):
        part = [groups[i] for i in indices]
        batch = collate(part, layout, policy.sharing)
        signal = batch_signal(part, kind)
        present = {f: value for f in signal.__dataclass_fields__ if (value := getattr(signal, f)) is not None}
        pieces.append(
            MicroBatch(
                content=PackedContent(groups=tuple(part), batch=batch),
                lengths=batch.lengths.to(policy.device),
                prompt=prompt_digests(part).to(policy.device),
                signal=type(signal)(**{f: value.to(policy.device) for f, value in present.items()}),
                origins=tuple(group.origin for group in part),
            )
        )
    return pieces


def prompt_digests(groups: Sequence[Group]) -> torch.Tensor:
    """A 63-bit digest of each completion's prompt."""
    digests = [hashlib.blake2b(group.prompt.astype("<i4").tobytes(), digest_size=8).digest() for group in groups]
    numbers = [int.from_bytes(digest, "little") >> 1 for digest in digests]
    return torch.tensor([n for n, group in zip(numbers, groups, strict=True) for _ in group.completions])


def mismatched_groups(groups: Sequence[Group]) -> list[Group]:
    """Each group's prompt with the completions of the next group of the step that has another prompt, if there is one."""
    found = []
    for index, group in enumerate(groups):
        following = [*groups[index + 1 :], *groups[:index]]
        other = next((one for one in following if not np.array_equal(one.prompt, group.prompt)), None)
        if other is not None:
            found.append(Group(
                prompt=group.prompt, completions=other.completions, labels=(0,) * len(other.completions),
                origin=f"{group.origin} with the completions of {other.origin}",
            ))  # fmt: skip
    return found


def make_score(policy: Policy, objective: Objective, reference: ReferenceLogps | None) -> Callable[[MicroBatch], TokenScores]:
    """The scoring function of a run: the policy with gradient, the reference without, and what the objective needs."""
    needs = objective.needs

    def score_piece(piece: MicroBatch) -> TokenScores:
        content = piece.content
        assert isinstance(content, PackedContent)
        ref_logp = None
        if reference is not None:
            flat = [logp for group in reference(content.groups) for logp in group]
            ref_logp = torch.from_numpy(np.concatenate(flat)).to(policy.device)
        found = score(
            policy, content.batch, entropy="entropy" in needs,
            logits=bool(needs & {"target_logit", "log_normaliser"}),
        )  # fmt: skip
        return TokenScores(
            logp=found.logp, lengths=piece.lengths, ref_logp=ref_logp, entropy=found.entropy,
            target_logit=found.target_logit, log_normaliser=found.log_normaliser,
        )  # fmt: skip

    return score_piece
