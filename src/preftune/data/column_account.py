"""What became of every column of a file: used, passed to reward functions, or not used.

A column that is not used but looks like preference information, an answer or a part of the prompt stops the run:
rows must not be trained on without what they say.
"""

import re
from collections.abc import Iterable, Mapping

from preftune.data.column_map import REPLACED
from preftune.data.fields import Row
from preftune.data.label_words import NEGATIVE, NUMBERS, POSITIVE, label_word
from preftune.data.row_view import Format
from preftune.errors import DataError, shown

PASSED = "passed to reward functions"
UNUSED = "not used"
IGNORED = "ignored"

_PREFERENCE = frozenset(
    [
        "rating",
        "ratings",
        "rate",
        "score",
        "scores",
        "label",
        "labels",
        "thumb",
        "thumbs",
        "thumbsup",
        "thumbsdown",
        "like",
        "likes",
        "liked",
        "dislike",
        "upvote",
        "upvotes",
        "downvote",
        "downvotes",
        "vote",
        "votes",
        "winner",
        "win",
        "won",
        "loser",
        "preference",
        "preferences",
        "preferred",
        "prefer",
        "pref",
        "better",
        "best",
        "worse",
        "worst",
        "chosen",
        "rejected",
        "reject",
        "accepted",
        "accept",
        "helpful",
        "helpfulness",
        "harmless",
        "harmlessness",
        "correct",
        "correctness",
        "coherence",
        "quality",
        "feedback",
        "reward",
        "rewards",
        "rank",
        "ranks",
        "ranking",
        "grade",
        "stars",
        "star",
        "verdict",
        "judgement",
        "judgment",
        "choice",
        "selected",
        "safer",
        "safe",
        "good",
        "bad",
        "prob",
        "probability",
        "probabilities",
        "margin",
        "annotation",
        "approved",
        "desirable",
        "satisfaction",
        "satisfied",
        "outcome",
        "incorrect",
        "kto",
    ]
)
_METADATA = frozenset(
    [
        "model",
        "models",
        "source",
        "generator",
        "policy",
        "hash",
        "sha256",
        "length",
        "len",
        "tokens",
        "lang",
        "language",
        "time",
        "date",
        "turns",
        "explanation",
        "rationale",
        "reason",
        "statement",
        "elaboration",
        "critique",
        "prompt",
    ]
)  # as the last word after one of the words above: about it, and not a preference itself
_ANSWERS = frozenset(
    [
        "completion",
        "completions",
        "response",
        "responses",
        "answer",
        "answers",
        "output",
        "outputs",
        "messages",
        "conversation",
        "conversations",
        "generation",
        "generations",
        "solution",
        "reply",
    ]
)
_PROMPTS = frozenset(
    [
        "prompt",
        "context",
        "input",
        "passage",
        "document",
        "documents",
        "article",
        "background",
        "question",
        "query",
        "instruction",
        "history",
        "system",
        "system_prompt",
    ]
)
_NO_SIGNAL = ("completions", "prompts")
_WORDS = re.compile(r"[A-Za-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_EMPTY = (None, "", [], {}, ())


def words_of(name: str) -> list[str]:
    """The words of a column's name, in lower case; endings such as the 1 of response_1 are left out."""
    words = _WORDS.findall(_CAMEL.sub(" ", name))
    return [word.lower().rstrip("0123456789") or word for word in words]


def kind_of(name: str, form: str) -> str:
    """What a column that is not used seems to be, from its name: preference, answer, prompt, or nothing."""
    words = words_of(name)
    metadata = bool(words) and words[-1] in _METADATA
    if _PREFERENCE & set(words) and not metadata:
        return "preference information"
    if name.startswith(("is_", "has_")) and form in _NO_SIGNAL:
        return "preference information"
    if form in _NO_SIGNAL and _ANSWERS & set(words) and not metadata:
        return "an answer"
    if name in _PROMPTS:
        return "a part of the prompt"
    return ""


def values_look_like_labels(values: Iterable[object], form: str) -> bool:
    """Whether the values of a column are labels in words: up and down, good and bad; or, where the format has no
    signal, true and false.
    """
    words = {label_word(value) for value in values if isinstance(value, (bool, str)) and value != ""}
    flags = {"true", "false"}
    if not words or not words <= POSITIVE | NEGATIVE or words <= NUMBERS:
        return False
    if words <= flags and form not in _NO_SIGNAL:
        return False
    return bool(words & POSITIVE and words & NEGATIVE) or not words <= flags | {
        "yes",
        "no",
        "y",
        "n",
        "t",
        "f",
    }


class ColumnAccount:
    """The roles of the columns of one source; rows are added one by one.

    `passed` says that what is not used goes to reward functions, so that nothing stops.
    """

    def __init__(self, form: Format, ignored: Iterable[str], passed: bool) -> None:
        self.form, self.passed = form, passed
        self.ignored = set(ignored)
        self.roles: dict[str, str] = {}
        self.stops: dict[str, tuple[str, object]] = {}  # column -> (what it seems to be, a value)
        self._known: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self._open: set[str] = (
            set()
        )  # columns that are not used and hold nothing so far, or repeat the prompt
        self._first: dict[str, list[object]] = {}  # a few values of columns without a role

    def look(self, rows: Iterable[Row]) -> None:
        """The first rows, for what values look like."""
        for row in rows:
            for name, value in row.items():
                if isinstance(value, (bool, str)):
                    self._first.setdefault(str(name), []).append(value)

    def add(self, row: Row, used: Mapping[str, str]) -> None:
        """One more row and the roles of the columns that were used."""
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
        self._look_again(row, used)

    def _look_again(self, row: Row, used: Mapping[str, str]) -> None:
        for name in [name for name in row if name in self._open]:
            if name in used or self.passed:
                self._open.discard(name)
                continue
            value = row[name]
            if value in _EMPTY or value != value:
                continue
            kind = self._kind(str(name))
            if kind == "a part of the prompt" and _repeats(value, row, used):
                continue
            self._open.discard(name)
            if kind:
                self.stops.setdefault(str(name), (kind, value))

    def _kind(self, name: str) -> str:
        if name in self.form.companions:
            return ""
        kind = kind_of(name, self.form.name)
        if not kind and values_look_like_labels(self._first.get(name, ()), self.form.name):
            return "preference information"
        return kind

    def lines(self) -> list[str]:
        return column_lines(self.summary())

    def summary(self) -> dict[str, str]:
        """Column -> its role, in the order of the file."""
        return {str(name): role for name, role in self.roles.items()} | dict.fromkeys(
            sorted(self.ignored), IGNORED
        )

    def check(self, where: str) -> None:
        """An error if a column that is not used must not be passed over."""
        if self.stops:
            raise self.stop(where)

    def _prompt(self) -> str:
        """The column that was used as the prompt."""
        return next((name for name, role in self.roles.items() if role.startswith("prompt")), "prompt")

    def stop(self, where: str) -> DataError:
        names = list(self.stops)
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in self.stops.values()))
        used = [name for name, role in self.roles.items() if role not in (UNUSED, PASSED)]
        return DataError(
            f"{where}: {_plural(names)} not used by the format {self.form.name}, and {'they look' if len(names) > 1 else 'it looks'} like {kinds}",
            got=", ".join(f"{name} {shown(self.stops[name][1], 30)}" for name in names),
            expected=f"a use for every such column (used: {', '.join(used) or 'none'})",
            do=_advice(names, self.stops, self.form.name, self._prompt()),
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


def _plural(names: list[str]) -> str:
    return f"the columns {', '.join(names)} are" if len(names) > 1 else f"the column {names[0]} is"


def _advice(names: list[str], stops: Mapping[str, tuple[str, object]], form: str, prompt: str) -> str:
    """How to map the first such column, and how to ignore all of them."""
    kind, value = stops[names[0]]
    names = [name.removesuffix(REPLACED) for name in names]
    name = names[0]
    many = len(names) > 1
    ignore = f"If {'they do' if many else 'it does'} not matter, use --rows.ignore {','.join(names)}"
    if kind == "a part of the prompt":
        how = f"To join it with the prompt, use --rows.columns prompt={name}+{prompt}"
    elif kind == "an answer" and isinstance(value, list):
        how = f"Nothing says which of the {name} are good. Add rewards with `preftune reward`"
    elif kind == "an answer":
        how = f"Say what it is, as in --rows.columns completion={name}"
    elif form in _NO_SIGNAL and isinstance(value, (int, float)) and not isinstance(value, bool):
        how = (
            f"If {name} is a reward, use --rows.columns reward={name}; if it is a label, use "
            f"--rows.columns 'label={name}{{>=4:1,<=2:-1,3:0}}'"
        )
    elif form in _NO_SIGNAL:
        how = f"If {name} says which completions are good, use --rows.columns label={name}"
    else:
        how = f"Say what {name} is with --rows.columns FIELD={name}"
    return f"{how}. {ignore}"
