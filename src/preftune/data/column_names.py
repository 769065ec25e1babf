"""Usual spelling of column names: Prompt, "chosen " and chosenResponse are read as prompt, chosen, chosen_response."""

from collections import Counter

from preftune.data import (
    format_groups,
    format_index,
    format_labels,
    format_pairs,
    format_verdicts,
    prompts,
    turn_extras,
)
from preftune.data.column_kinds import snake
from preftune.data.options import FIELDS

KNOWN = frozenset(
    (
        *FIELDS,
        *prompts.PROMPTS,
        *prompts.SYSTEM,
        *format_pairs.CHOSEN,
        *format_pairs.REJECTED,
        *format_pairs.JUDGED,
        *format_groups.LISTS,
        *format_groups.NUMBER_COLUMNS,
        *format_index.BEST,
        *format_index.WORST,
        *format_labels.LABEL,
        *format_verdicts.VERDICT_COLUMNS,
        *turn_extras.RENDERED,
    )
)


class ColumnNames:
    """The names of the columns of a source as the formats know them, with the user's spelling of each."""

    def __init__(self) -> None:
        self.spelled: dict[str, str] = {}  # our name -> the user's
        self._of_row: dict[tuple[str, ...], tuple[str, ...] | None] = {}

    def usual(self, row: dict[str, object]) -> dict[str, object]:
        """The row under the names that the formats know; the same row where they are spelled so already."""
        names = tuple(row)
        if names not in self._of_row:
            self._of_row[names] = self._renamed(names)
        renamed = self._of_row[names]
        return row if renamed is None else dict(zip(renamed, row.values(), strict=True))

    def _renamed(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        """A name stays as it is if it is known, or if its usual spelling is unknown or is in the row twice."""
        spellings = [name if name in KNOWN else snake(name) for name in map(str, names)]
        count = Counter(spellings)
        result = tuple(
            usual if usual in KNOWN and count[usual] == 1 else name
            for name, usual in zip(names, spellings, strict=True)
        )
        self.spelled |= {ours: name for ours, name in zip(result, names, strict=True) if ours != name}
        return None if result == names else result
