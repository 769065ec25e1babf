"""The closed table of row formats: how each is recognized by its columns and converted to a Record."""

from collections.abc import Mapping, Sequence

from preftune.data import format_groups, format_labels, format_pairs, format_verdicts
from preftune.data.fields import Row
from preftune.data.row_view import EMPTY, EQUAL_PAIR, TIE, Drop, Format
from preftune.errors import DataError

__all__ = ["DETECTION_ROWS", "EMPTY", "EQUAL_PAIR", "FORMATS", "TIE", "Drop", "Format", "detect"]

DETECTION_ROWS = 20


def detect(rows: Sequence[Row]) -> Format:
    """The first format of the table that fits at least half of the first rows: a few bad rows do not hide it."""
    rows = rows[:DETECTION_ROWS]
    for form in FORMATS.values():
        if rows and sum(form.matches(row) for row in rows) * 2 >= len(rows):
            return form
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    raise DataError(
        "No format fits these rows",
        got="the columns " + (", ".join(columns) or "none"),
        expected="columns such as prompt, chosen, rejected; or prompt, completion, label; or prompt, completions, "
        "rewards (all formats: docs/data.md)",
        do=_advice(columns),
    )


def _advice(columns: Sequence[str]) -> str:
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        return "Separate the cells of a CSV file with commas"
    return "Name your columns, as in --rows.columns prompt=ask,chosen=winner,rejected=loser"


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        *format_pairs.formats(),
        *format_verdicts.formats(),
        *format_groups.formats(),
        *format_labels.formats(),
        *format_groups.only_by_name(),
    )
}
