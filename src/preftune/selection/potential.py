"""Pairs from which a policy has most to learn: a large margin of the reward, a small one of the policy. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from preftune.errors import DataError, shown
from preftune.selection.choices import Choice, Selected
from preftune.types import Record

LOW_POTENTIAL = "only pairs of low potential"


def keep_potential(
    kept: Sequence[Record], found: Selected, column: str, share: float
) -> tuple[list[Record], Selected]:
    """The records with the share of all pairs that have the largest alignment potential; at least one pair.

        potential = (r_c - r_r) - (i_c - i_r)

    with r the rewards and i the implicit rewards in `column`, one for each completion that the record had before the
    selection. Huang et al., "Larger or Smaller Reward Margins to Select Preferences for Alignment?", 2025, arXiv
    2503.01864: the gap between the explicit target margin and the current implicit one (from a secondary source).
    Equal potentials stay or go in the order of the data.
    """
    stay = [place for place, choice in enumerate(found.choices) if choice is not None]
    ranked = sorted(
        (-_potential(record, pair, choice, column), place, number)
        for place, record in zip(stay, kept, strict=True)
        if (choice := found.choices[place]) is not None
        for number, pair in enumerate(record.pairs)
    )
    best = {(place, number) for _, place, number in ranked[: max(1, math.ceil(share * len(ranked) - 1e-9))]}
    choices, records, left_out = list(found.choices), [], Counter(found.left_out)
    dropped = Counter(found.dropped)
    for place, record in zip(stay, kept, strict=True):
        choice = found.choices[place]
        assert choice is not None
        numbers = [number for number in range(len(record.pairs)) if (place, number) in best]
        if not numbers:
            choices[place] = None
            dropped[LOW_POTENTIAL] += 1
            continue
        pairs = tuple(choice.pairs[number] for number in numbers)
        inside = tuple(sorted({k for pair in pairs for k in pair}))
        left_out[LOW_POTENTIAL] += len(choice.kept) - len(inside)
        choices[place] = Choice(kept=inside, pairs=pairs)
        records.append(_with_pairs(record, numbers))
    left = {reason: count for reason, count in left_out.items() if count}
    return records, replace(found, choices=tuple(choices), dropped=dict(dropped), left_out=left)


def _potential(record: Record, pair: tuple[int, int], choice: Choice, column: str) -> float:
    values = record.columns.get(column)
    chosen, rejected = pair
    numbers = [record.rewards[chosen], record.rewards[rejected]]
    if isinstance(values, list) and len(values) > max(choice.kept):
        numbers += [values[choice.kept[chosen]], values[choice.kept[rejected]]]
    if len(numbers) < 4 or not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
        raise DataError(
            f"{record.origin}: the column {column} does not fit the completions",
            got="no such column" if column not in record.columns else shown(values, 60),
            expected="a list of numbers, one for each completion",
            do=f'Make it with: preftune reward FILE --reward "likelihood(model=M)" --column {column}',
        )
    r_c, r_r, i_c, i_r = (float(one) for one in numbers if one is not None)
    return (r_c - r_r) - (i_c - i_r)


def _with_pairs(record: Record, numbers: Sequence[int]) -> Record:
    """The record with some of its pairs and the completions in them."""
    pairs = [record.pairs[number] for number in numbers]
    keep = sorted({k for pair in pairs for k in pair})
    place = {k: index for index, k in enumerate(keep)}
    return replace(
        record,
        completions=tuple(record.completions[k] for k in keep),
        rewards=tuple(record.rewards[k] for k in keep),
        ended=tuple(record.ended[k] for k in keep) if record.ended else (),
        sources=tuple(record.sources[k] for k in keep) if record.sources else (),
        pairs=tuple((place[c], place[r]) for c, r in pairs),
    )
