"""What became of every column of a file: used, passed to reward functions, or not used.

A column that is not used but looks like preference information, an answer or a part of the prompt stops the run:
rows must not be trained on without what they state. So does a field inside a turn, an entry or an object.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations

from preftune.data.column_advice import RowFacts, Try, advice
from preftune.data.column_kinds import (
    NO_SIGNAL,
    SEEMS_ANSWER,
    SEEMS_PREFERENCE,
    SEEMS_PROMPT,
    SEEMS_WEIGHT,
    kind_of,
    opposite,
    values_look_like_labels,
)
from preftune.data.column_map import REPLACED
from preftune.data.fields import Row
from preftune.data.format_groups import LISTS
from preftune.data.format_verdicts import is_side
from preftune.data.nested_fields import NO_VALUE, object_in, plain_turns, unread
from preftune.data.row_view import Format
from preftune.errors import DataError, shown

PASSED = "passed to reward functions"
UNUSED = "not used"
IGNORED = "ignored"
_OPAQUE = ("tools", "template variables")  # roles of columns that go to the template as they are
_IN_TURNS = frozenset(
    ("attachments", "documents", "context", "functions")
)  # would change what the model reads


class ColumnAccount:
    """The roles of the columns of one source; rows are added one by one.

    `passed` states that what is not used goes to reward functions, so that nothing stops. `spelled` has the user's
    spelling of names that were read in ours, `chosen` the columns that the user named for our fields, `columns` the
    text of that option.
    """

    def __init__(
        self,
        form: Format,
        ignored: Iterable[str],
        passed: bool,
        spelled: Mapping[str, str] | None = None,
        chosen: Mapping[str, str] | None = None,
        columns: str = "",
    ) -> None:
        self.form, self.passed, self.columns = form, passed, columns
        self.ignored = set(ignored)
        self.spelled: Mapping[str, str] = {} if spelled is None else spelled
        self.chosen: Mapping[str, str] = {} if chosen is None else chosen
        self.roles: dict[str, str] = {}
        self.stops: dict[str, tuple[str, object]] = {}  # column -> (what it seems to be, a value)
        self._known: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self._open: set[str] = set()  # not used, and empty so far or a repetition of the prompt
        self._fields: set[str] = set()  # paths of fields inside values that were looked at
        self._first: dict[str, list[object]] = {}  # a few values of each column
        self._unused: dict[str, object] = {}  # a value of each column that is not used

    def look(self, rows: Iterable[Row]) -> None:
        """The first rows, for what values look like."""
        for row in rows:
            for name, value in row.items():
                if isinstance(value, (bool, int, float, str)):
                    self._first.setdefault(str(name), []).append(value)

    def add(self, row: Row, used: Mapping[str, str]) -> None:
        """One more row and the roles of the columns that were used."""
        for name, value in row.items():
            if (type(value) is list or type(value) is dict) and not plain_turns(value):
                self._look_inside(name, value, used)
        key = (tuple(row), tuple(used))
        if key in self._known:
            if self._open and not self._open.isdisjoint(row):
                self._look_again(row, used)
            return
        self._known.add(key)
        for name, role in used.items():
            if name in row and self.roles.get(name, UNUSED) in (UNUSED, PASSED):
                self.roles[name] = role
        for name in row:
            if name not in used:
                self.roles.setdefault(name, PASSED if self.passed else UNUSED)
                self._open.add(name)
        if not self.passed:
            self._look_at_texts(row, used)
        self._look_again(row, used)

    def _look_again(self, row: Row, used: Mapping[str, str]) -> None:
        for name in [name for name in row if name in self._open]:
            if name in used or self.passed:
                self._open.discard(name)
                continue
            value = row[name]
            if value in NO_VALUE or value != value:
                continue
            kind = self._kind(str(name))
            if (kind in (SEEMS_PROMPT, SEEMS_ANSWER) and _repeats(value, row, used)) or (
                kind == SEEMS_WEIGHT and value == 1
            ):
                continue
            self._open.discard(name)
            self._unused.setdefault(name, value)
            if kind:
                self.stops.setdefault(str(name), (kind, value))

    def _kind(self, name: str) -> str:
        if name in self.form.companions:
            return ""
        kind = kind_of(name, self.form.name)
        if not kind and values_look_like_labels(self._first.get(name, ()), self.form.name):
            return SEEMS_PREFERENCE
        if not kind and self.form.name == "verdicts" and is_side(name):
            return SEEMS_ANSWER
        return kind

    def _look_at_texts(self, row: Row, used: Mapping[str, str]) -> None:
        """Two columns whose names are opposites are two answers; text may hold an object."""
        unused = [name for name in row if name not in used]
        if self.form.name in NO_SIGNAL:
            texts = [name for name in unused if isinstance(row[name], (str, list)) and row[name]]
            for pair in combinations(texts, 2):
                if opposite(*pair) or opposite(*reversed(pair)):
                    self.stops |= {name: (SEEMS_ANSWER, row[name]) for name in pair}
        for name in unused:
            for text in self._first.get(name, ()):
                if inner := object_in(text):
                    self._look_inside(name, inner, used)

    # --- fields inside values ---

    def _look_inside(self, name: str, value: object, used: Mapping[str, str]) -> None:
        role = used.get(name)
        if role in _OPAQUE or name in self.ignored or (role is None and self.passed):
            return
        for path, cell in unread(name, value, used):
            if path in self._fields:
                continue
            self._fields.add(path)
            kind = "" if self.passed else self._kind_inside(path, cell, role is not None)
            if path in self.ignored:
                continue
            if role is not None or kind:
                self.roles[path] = UNUSED
            if kind:
                self.stops[path] = (kind, cell)

    def _kind_inside(self, path: str, cell: object, in_used: bool) -> str:
        parts = path.split(".")
        if not self.form.companions.isdisjoint(parts):
            return ""
        if in_used and not _IN_TURNS.isdisjoint(map(str.lower, parts[1:])):
            return SEEMS_PROMPT
        if kind_of(parts[-1], "pairs") == SEEMS_PREFERENCE:
            return SEEMS_PREFERENCE
        word = isinstance(cell, str) and len(cell) < 20 and values_look_like_labels([cell], "pairs")
        return SEEMS_PREFERENCE if word else ""

    # --- what is said of it ---

    def lines(self) -> list[str]:
        return column_lines(self.summary())

    def summary(self) -> dict[str, str]:
        """Column -> its role, in the order of the file."""
        roles = {self._name(name): role for name, role in self.roles.items()}
        return roles | dict.fromkeys(sorted(self.ignored), IGNORED)

    def _name(self, name: object) -> str:
        """The user's spelling."""
        return self.chosen.get(str(name), self.spelled.get(str(name), str(name)))

    def check(self, where: str, trial: Try | None = None) -> None:
        """An error if a column that is not used must not be passed over."""
        if self.stops:
            raise self.stop(where, trial)

    def stopping(self) -> list[str]:
        """The columns that stop the run, by the user's names."""
        return [self._name(name).removesuffix(REPLACED) for name in self.stops]

    def stop(self, where: str, trial: Try | None = None) -> DataError:
        stops = {self._name(name): stop for name, stop in self.stops.items()}
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in stops.values()))
        used = [self._name(name) for name, role in self.roles.items() if role not in (UNUSED, PASSED)]
        prompt = next((name for name, role in self.roles.items() if role.startswith("prompt")), "prompt")
        many = len(stops) > 1
        names = f"the columns {', '.join(stops)} are" if many else f"the column {next(iter(stops))} is"
        return DataError(
            f"{where}: {names} not used by the format {self.form.name}, and {'they look' if many else 'it looks'} "
            f"like {kinds}",
            got=", ".join(f"{name} {shown(value, 30)}" for name, (_, value) in stops.items()),
            expected=f"a use for every such column (used: {', '.join(used) or 'none'})",
            do=advice(
                RowFacts(
                    stops=stops,
                    row={self._name(name): value for name, value in self._unused.items()},
                    form=self.form.name,
                    prompt=self._name(prompt),
                    listed=LISTS,
                    first={self._name(name): values for name, values in self._first.items()},
                    columns=self.columns,
                    ignored=sorted(self.ignored),
                ),
                trial,
            ),
        )


def _repeats(value: object, row: Row, used: Iterable[str]) -> bool:
    """Whether a column that was used holds the same, as a whole or as the text of a turn."""
    for name in used:
        other = row.get(name)
        if other == value:
            return True
        if isinstance(other, list) and any(
            isinstance(turn, Mapping) and value in (turn.get("content"), turn.get("value")) for turn in other
        ):
            return True
    return False


def column_lines(roles: Mapping[str, str]) -> list[str]:
    """The account for a terminal: one line for each role."""
    by_role: dict[str, list[str]] = {}
    for name, role in roles.items():
        by_role.setdefault(role, []).append(name or "(unnamed)")
    used = [
        f"{', '.join(names)} (used as {role})"
        for role, names in by_role.items()
        if role not in (UNUSED, PASSED, IGNORED)
    ]
    lines = [f"columns: {'; '.join(used)}"] if used else []
    lines += [
        f"columns {role}: {', '.join(by_role[role])}" for role in (PASSED, UNUSED, IGNORED) if role in by_role
    ]
    return lines
