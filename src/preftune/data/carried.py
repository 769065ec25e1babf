"""Prompts from a file that also has answers and judgments: which of its columns new completions can keep."""

from dataclasses import replace
from typing import Any

from preftune.data.column_names import ColumnNames
from preftune.data.formats import detect
from preftune.data.options import DataOptions
from preftune.data.records import load_prompts
from preftune.data.row_view import Drop
from preftune.errors import DataError
from preftune.progress import Reporter
from preftune.types import Record

_LOOKED_AT = 16  # different values of a column


def load_prompts_to_answer(
    source: str, options: DataOptions, num_completions: int, report: Reporter
) -> list[Record]:
    """The records of `load_prompts` without columns that a reader would take for judgments of new completions,
    such as `winner` or `ranks`; they are named in the report.
    """
    records = load_prompts(source, options, report)
    values: dict[str, list[object]] = {}  # of each column, a few
    for record in records:
        for name, value in record.columns.items():
            seen = values.setdefault(name, [])
            if value is not None and len(seen) < _LOOKED_AT and value not in seen:
                seen.append(value)
    left = {name for name, seen in values.items() if any(_judges(name, one, num_completions) for one in seen)}
    if not left:
        return list(records)
    named = ", ".join(sorted(left))
    report.note(
        f"columns that would be read as statements about the new completions are left out: {named}; rename a column "
        "in the file to keep it"
    )
    return [
        replace(record, columns={name: value for name, value in record.columns.items() if name not in left})
        for record in records
    ]


def _judges(name: str, value: object, num_completions: int) -> bool:
    """Whether a row of samples means something else with this column, before it has rewards or with them."""
    count = range(num_completions)
    samples = {
        "prompt": "prompt",
        "completions": [f"completion {k}" for k in count],
        "ended": [True for _ in count],
        "num_tokens": [3 for _ in count],
        "budget": 8,
    }
    rewarded = samples | {"rewards": [float(k) for k in count]}
    return any(_read({name: value} | row) != _read(row) for row in (samples, rewarded))


def _read(row: dict[str, Any]) -> Record | Drop | None:
    """What the row is, without its other columns; None if it cannot be read."""
    usual = ColumnNames().usual(row)
    try:
        found = detect([usual]).convert(usual)
    except DataError:
        return None
    return replace(found, columns={}) if isinstance(found, Record) else found
