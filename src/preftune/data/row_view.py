"""One row while it is converted: what its columns hold, and what each was used as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from preftune.data.dialogues import Prompt
from preftune.data.fields import Row, as_ended, first_key, has, refuse_unrendered, value_of
from preftune.data.labels import LabelValues, as_label
from preftune.data.turn_extras import RENDERED, as_template_kwargs, as_tools
from preftune.types import Completion, Record

EQUAL_PAIR = "chosen and rejected are equal"  # why a row is dropped
EMPTY = "empty completion"
TIE = "tie: neither answer is preferred"

_USED_AS = {
    "ended": "whether completions ended",
    "tools": "tools",
    "chat_template_kwargs": "template variables",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A row in order that carries no preference."""

    reason: str


class RowView:
    """A row and the role of every column that a format has taken from it.

    `labels` is shared by all rows of a file; `origin` states where the row is.
    """

    __slots__ = ("labels", "origin", "row", "used")

    def __init__(self, row: Row, labels: LabelValues | None = None, origin: str = "") -> None:
        self.row, self.labels, self.origin = row, labels, origin
        self.used: dict[str, str] = {}

    def has(self, *names: str) -> bool:
        """Whether the row fills any of the columns."""
        return has(self.row, *names)

    def take(self, role: str, *names: str) -> tuple[str, object]:
        """(name, value) of the first of the columns that the row fills; an error if there is none."""
        name = first_key(self.row, *names)
        value = value_of(self.row, name)
        self.used[name] = role
        return name, value

    def get(self, role: str, *names: str) -> tuple[str, object]:
        """(name, value) like `take`; the value is None if the row fills none of the columns."""
        name = first_key(self.row, *names)
        if name in self.row:
            self.used[name] = role
        return name, self.row.get(name)

    def label(self, value: object, name: str) -> int | None:
        return as_label(value, name, self.labels)

    def record(self, prompt: Prompt, completions: Sequence[Completion], **signal) -> Record:
        """The record of this row: what no role was found for becomes its columns."""
        row, used = self.row, self.used
        refuse_unrendered(row)
        ended: tuple[bool, ...] = ()
        if "ended" in row:
            used["ended"] = _USED_AS["ended"]
            if completions and row["ended"] is not None:
                ended = as_ended(row["ended"], len(completions))
        for name, convert in _TEMPLATE:
            if name in row:
                used[name] = _USED_AS[name]
                if row[name] is not None:
                    signal[name] = convert(row[name], name)
        columns = {name: value for name, value in row.items() if name not in used}
        return Record(
            prompt=prompt,
            completions=tuple(completions),
            ended=ended,
            columns=columns,
            origin=self.origin,
            **signal,
        )


_TEMPLATE: tuple[tuple[str, Callable[[object, str], str]], ...] = tuple(
    zip(RENDERED, (as_tools, as_template_kwargs), strict=True)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to lay out a row. `matches` looks at the columns only; `read` checks everything."""

    name: str
    columns: str  # for people
    matches: Callable[[Row], bool]
    read: Callable[[RowView], Record | Drop]
    companions: frozenset[str] = frozenset()  # columns that explain the preference and are not needed

    def convert(self, row: Row) -> Record | Drop:
        """The record of one row on its own."""
        return self.read(RowView(row))
