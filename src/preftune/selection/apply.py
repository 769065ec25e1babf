"""A selection applied to records or to groups of tokens."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from preftune.data.fit import take_completions
from preftune.errors import DataError
from preftune.selection.choices import Choice, Selected, Selection
from preftune.types import Completion, Group, Record

One = TypeVar("One", Record, Group)

EQUAL_PAIRS = "equal completions with different rewards"
_EMPTIED = "only equal completions with different rewards"


def apply(selection: Selection, ones: Sequence[One], seed: int = 0) -> tuple[list[One], Selected]:
    """The records (or groups) that stay, with only the completions that were chosen, and what was left out.

    They keep their rewards and get the pairs or labels of the selection; those they had are gone. Equal
    completions with different rewards are distinguished by neither a pair nor a label. The choices speak of the
    completions before.
    """
    for one in ones:
        if len(one.rewards) != len(one.completions):
            raise DataError(
                f"{one.origin}: the completions have no rewards",
                got=f"{len(one.rewards)} rewards",
                expected=f"{len(one.completions)}, one each (or none where the reward gave none)",
            )
    selected = selection([one.rewards for one in ones], seed)
    dropped, left_out = Counter(selected.dropped), Counter(selected.left_out)
    choices: list[Choice | None] = []
    kept: list[One] = []
    for one, choice in zip(ones, selected.choices, strict=True):
        consistent = None if choice is None else _consistent(one, choice)
        choices.append(consistent)
        if consistent is not None:
            kept.append(_with_choice(one, consistent))
        if choice is not None and consistent is None:
            dropped[_EMPTIED] += 1
        elif choice is not None and consistent is not None:
            left_out[EQUAL_PAIRS] += len(choice.kept) - len(consistent.kept)
    found = replace(
        selected,
        choices=tuple(choices),
        dropped=dict(dropped),
        left_out={k: n for k, n in left_out.items() if n},
    )
    return kept, found


def _keys(one: Record | Group) -> list[Hashable]:
    """Key of a completion: its text, or its tokens and the mask of scored tokens."""
    if isinstance(one, Record):
        return [*one.completions]
    masks = [mask.tobytes() for mask in one.scored] or [b""] * len(one.completions)
    return [(ids.tobytes(), mask) for ids, mask in zip(one.completions, masks, strict=True)]


def _consistent(one: Record | Group, choice: Choice) -> Choice | None:
    """The choice without pairs of equal completions and without completions that have both labels."""
    keys = _keys(one)
    if choice.pairs:
        pairs = tuple((c, r) for c, r in choice.pairs if keys[c] != keys[r])
        return Choice(kept=tuple(sorted({k for pair in pairs for k in pair})), pairs=pairs) if pairs else None
    if choice.labels:
        signs: dict[Hashable, set[int]] = {}
        for k, label in zip(choice.kept, choice.labels, strict=True):
            signs.setdefault(keys[k], set()).add(label)
        stay = [
            (k, label)
            for k, label in zip(choice.kept, choice.labels, strict=True)
            if len(signs[keys[k]]) == 1
        ]
        return (
            Choice(kept=tuple(k for k, _ in stay), labels=tuple(label for _, label in stay)) if stay else None
        )
    return choice


def _with_choice(one: One, choice: Choice) -> One:
    place = {k: index for index, k in enumerate(choice.kept)}
    pairs = tuple((place[c], place[r]) for c, r in choice.pairs)
    bare = replace(one, pairs=(), probabilities=(), labels=())
    taken = take_completions(bare, choice.kept, ()) if isinstance(bare, Group) else _take(bare, choice.kept)
    return replace(taken, pairs=pairs, labels=choice.labels)


def _take(record: Record, keep: Sequence[int]) -> Record:
    """`take_completions` of a record."""
    completions: tuple[Completion, ...] = tuple(record.completions[k] for k in keep)
    return replace(
        record,
        completions=completions,
        rewards=tuple(record.rewards[k] for k in keep),
        ended=tuple(record.ended[k] for k in keep) if record.ended else (),
        sources=tuple(record.sources[k] for k in keep) if record.sources else (),
    )
