"""From groups to packed rows: which groups share a micro-batch, which sequences share a row, and the index
tensors.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from preftune.errors import ConfigError, DataError, check_range
from preftune.objectives.groupwise import with_pairs
from preftune.types import Batch, Group, Hybrid, Labels, Pairs, Rewards, Signal

Sharing = Literal["flat", "shared", "packed", "single", "alone"]
"""How sequences lie in rows: one row holds all, nothing pads it, and completions share their prompt; rows of
like length under an explicit mask, with shared prompts too; the same, with a copy of the prompt for every
completion; every row holds one sequence only (for models whose layers mix all positions of a row); or rows of
one sequence are also computed one at a time, whole (for models in which a row depends on the other rows).
"""
Attention = Literal["auto", "varlen", "flex", "segments", "sdpa", "eager"]


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How groups are laid out for the model. Results do not depend on it; time and memory do.

    Args:
        share_prompts: compute a prompt once for all its completions (where the model's attention can express
            it).
        micro_batch_tokens: positions computed at once; peak memory grows with it. A longer group is computed
            alone, and some of its layers a second time in the backward, so that it keeps no more.
        attention: "segments" computes scaled dot products sequence by sequence, on flat rows; "varlen" computes
            the same with one FlashAttention call per layer, on CUDA and in bf16 only; "flex" is FlexAttention,
            on CUDA only, which leaves out what the mask rules out; "sdpa" and "eager" compute whole rows under
            a mask. "auto" is on CUDA the first of varlen and flex that is proven to change nothing, else
            segments, else (soft-capped scores) eager.
    """

    share_prompts: bool = True
    micro_batch_tokens: int = 384
    attention: Attention = "auto"

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "micro_batch_tokens")
        if self.attention not in get_args(Attention):
            raise ConfigError(
                "attention is not known", got=self.attention, expected=", ".join(get_args(Attention))
            )

    @property
    def row_tokens(self) -> int:
        """Positions that a row under a mask is filled up to: attention costs grow with it, padding falls. A
        longer group has a separate row.
        """
        return math.ceil(self.micro_batch_tokens / 4)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A prompt and those completions of its group that share it in a row."""

    group: int  # index into the groups of the micro-batch
    completions: tuple[int, ...]  # indices into the group's completions
    num_positions: int


def segments(groups: Sequence[Group], sharing: Sharing, read_last: bool = False) -> list[Segment]:
    """One segment per group when prompts are shared, else one per completion."""
    found = []
    for index, group in enumerate(groups):
        lengths = [
            len(ids) - 1 + read_last for ids in group.completions
        ]  # the last token is a target, seldom an input
        if sharing in ("flat", "shared"):
            size = len(group.prompt) + sum(lengths)
            found.append(Segment(group=index, completions=tuple(range(len(lengths))), num_positions=size))
        else:
            found += [
                Segment(group=index, completions=(k,), num_positions=len(group.prompt) + length)
                for k, length in enumerate(lengths)
            ]
    return found


def pack_rows(found: Sequence[Segment], row_tokens: int, sharing: Sharing) -> list[list[Segment]]:
    """Few rows that hold everything within `row_tokens` each, evenly filled, so that little pads their ends.

    Each segment, longest first, goes to the emptiest row. A longer segment raises the limit for all rows:
    they are computed at its width anyway.
    """
    order = sorted(found, key=lambda s: (-s.num_positions, s.group, s.completions))
    if sharing == "flat":
        return [order]
    if sharing in ("single", "alone"):
        return [[segment] for segment in order]
    limit = max(row_tokens, order[0].num_positions)
    count = math.ceil(sum(segment.num_positions for segment in order) / limit)
    while True:
        rows: list[list[Segment]] = [[] for _ in range(count)]
        fills = [(0, row) for row in range(count)]  # a heap
        for segment in order:
            fill, row = heapq.heappop(fills)
            rows[row].append(segment)
            heapq.heappush(fills, (fill + segment.num_positions, row))
        if max(fills)[0] <= limit:
            return rows
        count += 1


def split_micro_batches(
    groups: Sequence[Group], options: LayoutOptions, sharing: Sharing, read_last: bool = False
) -> list[list[int]]:
    """Cut a step's groups (by index) into micro-batches of at most `micro_batch_tokens` real positions, a
    group never cut.

    Groups of like size come together, so that rows of one micro-batch are of like length.
    """
    sizes = [
        sum(segment.num_positions for segment in segments([group], sharing, read_last)) for group in groups
    ]
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(groups)), key=lambda i: (-sizes[i], i)):
        if not batches or sizes[index] > room:
            batches.append([])
            room = options.micro_batch_tokens
        batches[-1].append(index)
        room -= sizes[index]
    return batches


def collate(
    groups: Sequence[Group], options: LayoutOptions, sharing: Sharing, read_last: bool = False
) -> Batch:
    """Lay the groups of one micro-batch out in rows. Completions keep the order of groups and of completions
    in them.

    With `read_last` the last token of a completion is an input too, so that the model's state after it can be
    read.
    """
    include_last = read_last or sharing == "alone"  # what depends on the length depends on the whole length
    rows = pack_rows(segments(groups, sharing, include_last), options.row_tokens, sharing)
    width = max(sum(segment.num_positions for segment in row) for row in rows)
    tokens, positions, branches = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(3))
    owners = np.full((len(rows), width), -1, dtype=np.int64)
    share = np.zeros((len(rows), width), dtype=np.float32)
    predict_at: list[list[np.ndarray]] = [[np.empty(0)] * len(group.completions) for group in groups]
    read_at: list[list[np.ndarray]] = [[np.empty(0)] * len(group.completions) for group in groups]
    for r, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row):
            group, end = groups[segment.group], start + segment.num_positions
            prompt = len(group.prompt)
            owners[r, start:end] = number
            tokens[r, start : start + prompt] = group.prompt
            positions[r, start : start + prompt] = np.arange(prompt)
            share[r, start : start + prompt] = len(segment.completions) / len(group.completions)
            at = start + prompt
            for branch, k in enumerate(segment.completions, 1):
                count = len(group.completions[k])
                inner = count - 1 + include_last
                tokens[r, at : at + inner] = group.completions[k][:inner]
                positions[r, at : at + inner] = np.arange(prompt, prompt + inner)
                branches[r, at : at + inner] = branch
                share[r, at : at + count - 1] = 1.0
                places = r * width + np.concatenate([[start + prompt - 1], np.arange(at, at + count)])
                scored = group.scored[k] if group.scored else slice(None)
                predict_at[segment.group][k], read_at[segment.group][k] = (
                    places[:-1][scored],
                    places[1:][scored],
                )
                at += inner
            start = end
    targets = [
        ids[group.scored[k]] if group.scored else ids
        for group in groups
        for k, ids in enumerate(group.completions)
    ]
    return Batch(
        input_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        group_ids=torch.from_numpy(owners),
        branch_ids=torch.from_numpy(branches),
        predict_at=_flat(predict_at),
        read_at=_flat(read_at) if read_last else None,
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        lengths=torch.tensor([len(ids) for ids in targets]),
        rows=tuple(tuple(_lengths_in_row(one, groups, include_last) for one in row) for row in rows),
        share=torch.from_numpy(share),
    )


def _lengths_in_row(segment: Segment, groups: Sequence[Group], include_last: bool) -> tuple[int, ...]:
    """Positions of a segment's prompt and of each of its completions."""
    group = groups[segment.group]
    inner = (len(group.completions[k]) - 1 + include_last for k in segment.completions)
    return len(group.prompt), *inner


def _flat(places: Sequence[Sequence[np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([place for group in places for place in group]))


def batch_signal(groups: Sequence[Group], kind: type[Signal]) -> Signal:
    """The signal of a micro-batch, from what its groups know; indices run over the completions of all groups."""
    starts = np.cumsum([0, *(len(group.completions) for group in groups)])
    if kind is Pairs or kind is Hybrid:
        pairs = [
            (start + c, start + r)
            for start, group in zip(starts, groups, strict=False)
            for c, r in group.pairs
        ]
        chosen, rejected = torch.tensor(np.array(pairs, dtype=np.int64).reshape(-1, 2)).unbind(1)
        if kind is Hybrid:
            sources = [source for group in groups for source in group_sources(group)]
            index = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions])
            return Hybrid(chosen=chosen, rejected=rejected, source=torch.tensor(sources), group=index)
        if not any(group.probabilities for group in groups):
            return Pairs(chosen=chosen, rejected=rejected)
        chances = [p for group in groups for p in group.probabilities or (1.0,) * len(group.pairs)]
        probability = torch.tensor(chances, dtype=torch.get_default_dtype())
        return Pairs(chosen=chosen, rejected=rejected, probability=probability)
    if kind is Labels:
        return Labels(label=torch.tensor([label for group in groups for label in group_labels(group)]))
    if kind is Rewards:
        rewards = [reward for group in groups for reward in group.rewards]
        index = [g for g, group in enumerate(groups) for _ in group.completions]
        signal = Rewards(
            reward=torch.tensor(rewards, dtype=torch.get_default_dtype()),
            group=torch.tensor(index),
            step=_steps(groups),
        )
        return with_pairs(signal, tuple(len(group.completions) for group in groups))
    raise DataError(
        f"Files carry no {kind.__name__}", do="Use an objective that learns from pairs, labels or rewards"
    )


def _steps(groups: Sequence[Group]) -> torch.Tensor | None:
    """The rewards of steps at the scored tokens of all groups; NaN where there are none."""
    if not any(group.step_rewards for group in groups):
        return None
    parts = [
        part
        for group in groups
        for part in group.step_rewards or [np.full(size, np.nan) for size in group.num_scored]
    ]
    return torch.tensor(np.concatenate(parts), dtype=torch.get_default_dtype())


def group_sources(group: Group) -> tuple[int, ...]:
    """Who wrote each completion; an error if the group does not know."""
    if len(group.sources) != len(group.completions):
        raise DataError(
            f"{group.origin}: who wrote the completions is not known",
            got="no sources",
            expected="one source for each completion",
            do="Prepare the data for the signal hybrid",
        )
    return group.sources


def group_labels(group: Group) -> list[int]:
    """+1 or -1 per completion: the group's own labels, or those that its pairs imply (0: both or neither)."""
    if group.labels:
        return [label or 0 for label in group.labels]
    chosen = {c for c, _ in group.pairs}
    rejected = {r for _, r in group.pairs}
    return [int(k in chosen) - int(k in rejected) for k in range(len(group.completions))]


def group_pairs(group: Group) -> tuple[tuple[int, int], ...]:
    """(chosen, rejected): the group's own pairs, or every completion against those of a lower label or
    reward.
    """
    if group.pairs:
        return group.pairs
    values = group.labels or group.rewards
    known = [(k, value) for k, value in enumerate(values) if value is not None]
    return tuple((c, r) for c, better in known for r, worse in known if better > worse)
