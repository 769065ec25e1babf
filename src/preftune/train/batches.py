"""From groups to what a step consumes, and from that to the scores that an objective sees."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from preftune.errors import DataError
from preftune.model.layout import LayoutOptions, Sharing, batch_signal, collate, segments, split_micro_batches
from preftune.model.policy import Policy, route, score, sent
from preftune.model.reference import REFERENCE_SCORES
from preftune.objectives import Objective, objective_name
from preftune.objectives.base import couples_mismatched, note_tokens
from preftune.train.anchors import Anchors, GroupLogps
from preftune.train.onpolicy.correction import gradient_weights, weighted
from preftune.train.processes import ALONE, Processes
from preftune.train.router_loss import RouterLoss
from preftune.train.step import MicroBatch
from preftune.types import Batch, Group, Labels, RouterUse, Signal, TokenScores

ANCHORED = REFERENCE_SCORES | {"behaviour_logp", "behaviour_value", "contrast"}
"""Scores that other models give than the policy as it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedContent:
    """Content of a micro-batch for a language model."""

    groups: tuple[Group, ...]
    batch: Batch


def reads_last(objective: Objective) -> bool:
    """Whether the objective sees the model's state after the last token of a completion, and not only before
    it.
    """
    return "value_after" in objective.needs


def cut_step(
    groups: Sequence[Group],
    kind: type[Signal],
    policy: Policy,
    layout: LayoutOptions,
    read_last: bool = False,
) -> list[MicroBatch]:
    """A step's groups as packed micro-batches on the policy's device."""
    pieces = []
    for indices in split_micro_batches(groups, layout, policy.sharing, read_last):
        part = [groups[i] for i in indices]
        batch = collate(part, layout, policy.sharing, read_last)
        signal = batch_signal(part, kind)
        tensors = {
            f: sent(value, policy.device)
            for f in signal.__dataclass_fields__
            if torch.is_tensor(value := getattr(signal, f))
        }
        pieces.append(
            MicroBatch(
                content=PackedContent(groups=tuple(part), batch=batch),
                lengths=note_tokens(sent(batch.lengths, policy.device), int(batch.lengths.sum())),
                prompt=sent(prompt_digests(part), policy.device),
                signal=replace(signal, **tensors),
                origins=tuple(group.origin for group in part),
            )
        )
    return pieces


def evened(
    pieces: Sequence[MicroBatch],
    groups: Sequence[Group],
    kind: type[Signal],
    policy: Policy,
    layout: LayoutOptions,
    processes: Processes,
    read_last: bool = False,
) -> list[MicroBatch]:
    """The pieces of this process's share of some groups, with idle pieces after them, so that processes in
    lockstep have equally many. An idle piece is the smallest of all groups: anchors know what it needs.
    """
    missing = max(processes.gather(len(pieces))) - len(pieces) if processes.lockstep else 0
    if not missing:
        return list(pieces)
    small = min(groups, key=lambda group: num_positions([group], policy.sharing, read_last))
    (idle,) = cut_step([small], kind, policy, layout, read_last)
    return [*pieces, *[replace(idle, idle=True)] * missing]


def prompt_digests(groups: Sequence[Group]) -> torch.Tensor:
    """A 63-bit digest of each completion's prompt."""
    digests = [
        hashlib.blake2b(group.prompt.astype("<i4").tobytes(), digest_size=8).digest() for group in groups
    ]
    numbers = [int.from_bytes(digest, "little") >> 1 for digest in digests]
    return torch.tensor([n for n, group in zip(numbers, groups, strict=True) for _ in group.completions])


def mismatched_groups(groups: Sequence[Group]) -> list[Group]:
    """Each group's prompt with the completions of the next group of the step that has another prompt, if
    there is one.
    """
    found = []
    for index, group in enumerate(groups):
        following = [*groups[index + 1 :], *groups[:index]]
        other = next((one for one in following if not np.array_equal(one.prompt, group.prompt)), None)
        if other is not None:
            found.append(
                Group(
                    prompt=group.prompt,
                    completions=other.completions,
                    scored=other.scored,
                    labels=(0,) * len(other.completions),
                    origin=f"{group.origin} with the completions of {other.origin}",
                )
            )
    return found


def with_mismatched(objective: Objective, groups: Sequence[Group]) -> Sequence[Group]:
    """Every group that anchors score in a step of these groups."""
    return [*groups, *mismatched_groups(groups)] if couples_mismatched(objective) else groups


def check_prompts(objective: Objective, groups: Sequence[Group]) -> None:
    """Whether an objective that compares completions with those of other prompts has other prompts."""
    if couples_mismatched(objective) and len({group.prompt.tobytes() for group in groups}) < 2:
        raise DataError(
            f"{objective_name(objective)} compares completions with those of other prompts",
            got="one prompt in the training data",
            expected="two prompts or more",
            do="Add prompts, or use an objective without this comparison, for example apo-zero or bco",
        )


def cut_mismatched(
    groups: Sequence[Group],
    objective: Objective,
    policy: Policy,
    layout: LayoutOptions,
    processes: Processes = ALONE,
) -> list[MicroBatch]:
    """This process's share of the mismatched completions of a step, for an objective that couples them; else
    nothing.
    """
    if not couples_mismatched(objective):
        return []
    found, read_last = mismatched_groups(groups), reads_last(objective)
    pieces = cut_step(share_of(found, policy, processes), Labels, policy, layout, read_last)
    return evened(pieces, found, Labels, policy, layout, processes, read_last)


def share_of(groups: Sequence[Group], policy: Policy, processes: Processes) -> list[Group]:
    """The groups that this process computes, about as many positions as any other does."""
    return [groups[i] for i in processes.share([num_positions([group], policy.sharing) for group in groups])]


def num_positions(groups: Sequence[Group], sharing: Sharing, read_last: bool = False) -> int:
    """Positions that the model reads for some groups, row-end padding not counted."""
    return sum(segment.num_positions for segment in segments(groups, sharing, read_last))


def make_score(
    policy: Policy, objective: Objective, anchors: Anchors, temperature: float = 1.0
) -> Callable[[MicroBatch], TokenScores]:
    """The scoring function of a run: the policy with gradient, the anchors without, and what the objective
    needs.

    Anchors that are there are used whether the objective needs them or not: evaluation measures log-ratios
    for all. `temperature` is that of the policy's distribution, `TrainConfig.scored_at`; anchors bring their
    own.
    """
    needs = objective.needs

    def flat(anchor: GroupLogps | None, groups: Sequence[Group]) -> torch.Tensor | None:
        if anchor is None:
            return None
        return sent(
            torch.from_numpy(np.concatenate([logp for group in anchor(groups) for logp in group])),
            policy.device,
        )

    def score_piece(piece: MicroBatch) -> TokenScores:
        content = piece.content
        assert isinstance(content, PackedContent)
        hidden = None if anchors.reference_hidden is None else anchors.reference_hidden(content.groups)
        anchored = {
            name: flat(anchor, content.groups)
            for name, anchor in {
                "ref_logp": anchors.reference,
                "behaviour_logp": anchors.behaviour,
                "contrast": anchors.contrast,
                "behaviour_value": anchors.behaviour_value,
            }.items()
        }
        found = score(  # last: what it keeps is the peak, alone
            policy, content.batch, needs, hidden, temperature=temperature, into_grad=True
        )
        weights = gradient_weights(content.groups)
        if weights is not None:
            found = replace(found, logp=weighted(found.logp, sent(weights, policy.device)))
        return replace(found, lengths=piece.lengths, **anchored)

    return score_piece


def make_router_loss(policy: Policy) -> RouterLoss | None:
    """How a step reads the routers of the policy; None of a model without experts."""

    def route_content(content: object) -> RouterUse:
        assert isinstance(content, PackedContent)
        return route(policy, content.batch)

    router = policy.router
    return None if router is None else RouterLoss(coefficient=router.coefficient, route=route_content)
