"""Pairs of other data among a round's own."""

from collections.abc import Sequence

import numpy as np

from preftune.errors import DataError
from preftune.types import Message, Record

PairRow = dict[str, object]


def pair_rows_of(records: Sequence[Record]) -> list[PairRow]:
    """Each pair of the records as {prompt, chosen, rejected}."""
    return [
        {
            **record.template_columns(),
            "prompt": _plain(record.prompt),
            "chosen": _plain(record.completions[c]),
            "rejected": _plain(record.completions[r]),
            **({"ended": [record.ended[c], record.ended[r]]} if record.ended else {}),
        }
        for record in records
        for c, r in record.pairs
    ]


def replayed(own: int, others: Sequence[PairRow], share: float, seed: int) -> list[PairRow]:
    """Rows of other data, drawn without replacement, so that they are `share` of all; fewer if there are fewer."""
    if not others:
        raise DataError("The data to mix in hold no pairs", got="0 pairs", expected="at least one")
    count = min(len(others), round(own * share / (1 - share)))
    places = np.random.default_rng(seed).choice(len(others), size=count, replace=False)
    return [others[place] for place in sorted(places.tolist())]


def _plain(text: str | tuple[Message, ...]) -> object:
    return text if isinstance(text, str) else [turn.as_dict() for turn in text]
