"""The closed table of row formats: how each is recognized by its columns and converted to a Record."""

from collections.abc import Callable, Mapping, Sequence

from preftune.data import format_groups, format_index, format_labels, format_pairs, format_verdicts
from preftune.data.fields import Row
from preftune.data.row_view import EMPTY, EQUAL_PAIR, TIE, Drop, Format
from preftune.errors import DataError

__all__ = ["DETECTION_ROWS", "EMPTY", "EQUAL_PAIR", "FORMATS", "TIE", "Drop", "Format", "detect"]

DETECTION_ROWS = 20


def detect(rows: Sequence[Row], advise: Callable[[], str] | None = None) -> Format:
    """The first format of the table that fits at least half of the first rows: a few bad rows do not hide it.

    `advise` states what to do where no format fits.
    """
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
        do=advise() if advise and not _is_one_cell(columns) else _advice(columns),
    )


def _is_one_cell(columns: Sequence[str]) -> bool:
    return len(columns) == 1 and any(mark in columns[0] for mark in ";\t|")


def _advice(columns: Sequence[str]) -> str:
    if _is_one_cell(columns):
        return "Separate the cells of a CSV file with commas"
    return "Say which column is which, as in --rows.columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN"


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        *format_pairs.formats(),
        *format_verdicts.formats(),
        *format_groups.formats(),
        *format_index.formats(),
        *format_labels.formats(),
        *format_groups.only_by_name(),
    )
}
