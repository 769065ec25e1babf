"""Columns of a file of prompts that may stand beside new completions: those that say nothing of the old ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from preftune.data.memory import memory_source
from preftune.data.options import DataOptions
from preftune.data.records import RecordReader, load_prompts
from preftune.errors import DataError
from preftune.progress import Reporter
from preftune.types import Record


def load_prompts_to_answer(
    source: str, options: DataOptions, num_completions: int, report: Reporter
) -> list[Record]:
    """The records of `load_prompts` without columns that a reader would take for judgments of new completions,
    such as `winner` or `ranks`; they are named in the report.
    """
    records = load_prompts(source, options, report)
    values: dict[str, object] = {}  # of each column, the first
    for record in records:
        for name, value in record.columns.items():
            if value is not None:
                values.setdefault(name, value)
    left = {name for name, value in values.items() if _judges(name, value, num_completions)}
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
    """Whether a row of samples reads differently beside this column, before or after it has rewards."""
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


def _read(row: dict[str, Any]) -> Sequence[Record] | None:
    """What the row is, other than its columns; None if it cannot be read."""
    try:
        reader = RecordReader(memory_source([row]), DataOptions(), passed=True, stops=False, tried=True)
        return [replace(record, columns={}, origin="") for record in reader]
    except DataError:
        return None
