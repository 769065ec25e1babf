"""What happens to a group longer than the maximum: one explicit policy, every effect named for the count.
Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from preftune.data.masks import masks_of
from preftune.data.options import Truncation
from preftune.errors import DataError
from preftune.types import SOURCES, Group

WHOLE = "whole"
PROMPT_CUT = "prompt cut"
COMPLETION_CUT = "completions cut"
TOO_LONG = "dropped: too long"
COMPLETIONS_TOO_LONG = "dropped: the completions alone are too long"
NO_ROOM = "dropped: the prompt leaves no room for a completion"
EQUAL = "dropped: equal tokens"
NOTHING_SCORED = "dropped: a completion without a scored token"
CUT_EQUAL = "dropped: equal tokens after cutting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A group that fits, or None where it was dropped; `kind` states what was done."""

    group: Group | None
    kind: str


def fit(group: Group, *, max_length: int, truncation: Truncation, bos: int | None) -> Fitted:
    """The group within `max_length` tokens of prompt and longest completion.

    A group without completions must leave room for one token. A completion that was cut has no end-of-turn
    token. Completions of equal tokens that the signal distinguishes are no preference, cut or not.
    """
    if 0 in group.num_scored:
        return Fitted(group=None, kind=NOTHING_SCORED)
    told_apart = _told_apart(group)
    if told_apart is None:
        return Fitted(group=None, kind=EQUAL)
    group = told_apart
    prompt, longest = len(group.prompt), max((len(ids) for ids in group.completions), default=1)
    if prompt + longest <= max_length:
        return Fitted(group=group, kind=WHOLE)
    if truncation == "error":
        raise DataError(
            f"{group.origin}: the row is longer than max_length",
            got=f"{prompt} + {longest} tokens",
            expected=f"at most {max_length}",
            do="Raise max_length, or set truncation to drop, cut_prompt or cut_completion",
        )
    if truncation == "drop":
        return Fitted(group=None, kind=TOO_LONG)
    if truncation == "cut_prompt":
        return _cut_prompt(group, max_length - longest, bos)
    return _cut_completions(group, max_length - prompt)


def _cut_prompt(group: Group, room: int, bos: int | None) -> Fitted:
    """The last tokens of the prompt, behind its BOS if it has one."""
    first = group.prompt[:1] if bos is not None and group.prompt[0] == bos else group.prompt[:0]
    if room <= len(first):
        return Fitted(group=None, kind=COMPLETIONS_TOO_LONG)
    last = group.prompt[len(group.prompt) - room + len(first) :]
    return Fitted(group=replace(group, prompt=np.concatenate([first, last])), kind=PROMPT_CUT)


def _cut_completions(group: Group, cap: int) -> Fitted:
    """All completions cut to the same cap, so that no pair differs by the cut alone.

    Context that is left at the end goes too: nothing follows that could read it.
    """
    if cap < 1:
        return Fitted(group=None, kind=NO_ROOM)
    masks = masks_of(group)
    ends = [int(np.flatnonzero(mask[:cap])[-1]) + 1 if mask[:cap].any() else 0 for mask in masks]
    if 0 in ends:
        return Fitted(group=None, kind=NOTHING_SCORED)
    cut = _told_apart(
        replace(
            group,
            completions=tuple(ids[:end].copy() for ids, end in zip(group.completions, ends, strict=True)),
            scored=tuple(mask[:end].copy() for mask, end in zip(group.scored, ends, strict=False)),
        )
    )
    return Fitted(group=cut, kind=COMPLETION_CUT if cut else CUT_EQUAL)


def _told_apart(group: Group) -> Group | None:
    """The group without pairs of equal tokens; None if nothing is left, or equal tokens have different
    signals.

    What stays is in a pair, or a sample of the policy, which needs none.
    """
    masks = [mask.tobytes() for mask in group.scored] or [b""] * len(group.completions)
    texts = [ids.tobytes() + mask for ids, mask in zip(group.completions, masks, strict=True)]
    if len(set(texts)) == len(texts):
        return group
    values: dict[bytes, int | float | None] = {}
    for signals in (group.labels, group.rewards):
        values.clear()
        if any(values.setdefault(text, value) != value for text, value in zip(texts, signals, strict=False)):
            return None
    different = [p for p, (i, j) in enumerate(group.pairs) if texts[i] != texts[j]]
    if len(different) == len(group.pairs):
        return group
    samples = {k for k, source in enumerate(group.sources) if source == SOURCES.index("policy")}
    keep = sorted({k for p in different for k in group.pairs[p]} | samples)
    return take_completions(group, keep, different) if keep else None


def take_completions(group: Group, keep: Sequence[int], pairs: Sequence[int]) -> Group:
    """The group with only these completions and pairs (both by number), and what is known of them."""
    place = {k: index for index, k in enumerate(keep)}
    return replace(
        group,
        completions=tuple(group.completions[k] for k in keep),
        scored=tuple(group.scored[k] for k in keep) if group.scored else (),
        pairs=tuple((place[i], place[j]) for i, j in (group.pairs[p] for p in pairs)),
        probabilities=tuple(group.probabilities[p] for p in pairs) if group.probabilities else (),
        labels=tuple(group.labels[k] for k in keep) if group.labels else (),
        rewards=tuple(group.rewards[k] for k in keep) if group.rewards else (),
        step_rewards=tuple(group.step_rewards[k] for k in keep) if group.step_rewards else (),
        sources=tuple(group.sources[k] for k in keep) if group.sources else (),
        behaviour_logp=tuple(group.behaviour_logp[k] for k in keep) if group.behaviour_logp else (),
        correction=tuple(group.correction[k] for k in keep) if group.correction else (),
        behaviour_value=tuple(group.behaviour_value[k] for k in keep) if group.behaviour_value else (),
    )
