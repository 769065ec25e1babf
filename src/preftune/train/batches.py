"""From groups to what a step consumes, and from that to the scores that an objective sees."""

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
        pieces.append(
            MicroBatch(
                content=PackedContent(groups=tuple(part), batch=batch),
                lengths=batch.lengths.to(policy.device),
                signal=type(signal)(**{f: getattr(signal, f).to(policy.device) for f in signal.__dataclass_fields__}),
                origins=tuple(group.origin for group in part),
            )
        )
    return pieces


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
