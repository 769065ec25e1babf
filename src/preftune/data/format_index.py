"""Rows of several answers to one prompt and the place, letter or text of the best one."""

from collections.abc import Mapping, Sequence

from preftune.data.dialogues import Prompt
from preftune.data.fields import ColumnFault, Row, described, first_key, has, is_number
from preftune.data.format_groups import LISTS, NUMBER_COLUMNS, answers_of
from preftune.data.label_words import verdict_word
from preftune.data.pair_checks import check_pair
from preftune.data.prompts import PROMPTS, read_prompt
from preftune.data.row_view import EQUAL_PAIR, TIE, Drop, RowView
from preftune.types import Completion, Record

_WORDS = ("best", "chosen", "preferred", "selected", "better", "winner", "choice")
_ENDS = (
    "index",
    "idx",
    "id",
    "response",
    "response_id",
    "response_index",
    "answer_index",
    "answer",
    "completion",
)
BEST = (*_WORDS, *(f"{word}_{end}" for word in _WORDS for end in _ENDS))
_WORST_WORDS = ("worst", "rejected", "worse")
WORST = (*_WORST_WORDS, *(f"{word}_{end}" for word in _WORST_WORDS for end in _ENDS))


def read_indexed(view: RowView) -> Record | Drop:
    """The best answer against each other one, or against the rejected one alone."""
    prompt = read_prompt(view)
    key, texts = answers_of(view, prompt)
    _, value = view.take("place of the best completion", *BEST)
    if isinstance(value, str) and verdict_word(value, ("a", "b")) is None:
        return Drop(reason=TIE)
    best = _place(view, "place of the best completion", BEST, key, texts)
    others = [place for place in range(len(texts)) if place != best]
    pairs = [(best, place) for place in others]
    if view.has(*WORST):
        worst = _place(view, "place of the worst completion", WORST, key, texts)
        if worst == best:
            raise ColumnFault(
                "The best and the worst completion are the same",
                got=f"place {best} of {key}",
                expected="two different places",
            )
        if first_key(view.row, *WORST).startswith("worst"):
            pairs += [(place, worst) for place in others if place != worst]
        else:
            pairs = [(best, worst)]
    check_pair(view)
    pairs = [(good, bad) for good, bad in pairs if texts[good] != texts[bad]]
    if not pairs:
        return Drop(reason=EQUAL_PAIR)
    return _of_paired(view, prompt, texts, pairs)


def _of_paired(
    view: RowView, prompt: Prompt, texts: Sequence[Completion], pairs: Sequence[tuple[int, int]]
) -> Record:
    """The record without answers that no pair has."""
    kept = sorted({place for pair in pairs for place in pair})
    moved = {place: index for index, place in enumerate(kept)}
    return view.record(
        prompt,
        [texts[place] for place in kept],
        pairs=tuple((moved[good], moved[bad]) for good, bad in pairs),
    )


def _place(view: RowView, role: str, names: tuple[str, ...], key: str, texts: Sequence[Completion]) -> int:
    """The place of an answer, from its number, its letter, its text or the name of its model."""
    name, value = view.take(role, *names)
    place = _named(value, view.row, texts)
    if place is None and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value) if is_number(str(value)) else 0.5
        if number.is_integer():
            place = int(number)
            if view.labels is not None:
                view.labels.note_place(place, name)
    if place is None or not 0 <= place < len(texts):
        ones = ",".join(f"{k + 1}:{k}" for k in range(len(texts)))
        field = "best" if names is BEST else "worst"
        raise ColumnFault(
            f"The column {name} is not the place of one of the {key}",
            got=described(value),
            expected=f"a number from 0 to {len(texts) - 1}, a letter, or the answer itself",
            do=f"If it counts from 1, use --rows.columns '{field}={name}{{{ones}}}'",
        )
    return place


def _named(value: object, row: Row, texts: Sequence[Completion]) -> int | None:
    """The place that a text names; None for a number and for a text that names none, or more than one."""
    if not isinstance(value, str):
        return None
    for listed in (texts, row.get("models")):
        if isinstance(listed, (list, tuple)) and len(listed) == len(texts):
            places = [place for place, item in enumerate(listed) if item == value]
            if len(places) == 1:
                return places[0]
    side = verdict_word(value, ("a", "b"))
    if isinstance(side, int) and len(texts) == 2:
        return side
    letter = value.strip().lower()
    return ord(letter) - ord("a") if len(letter) == 1 and "a" <= letter <= "z" else None


def is_indexed(row: Mapping[str, object]) -> bool:
    listed = row.get(first_key(row, *LISTS))
    value = row.get(first_key(row, *BEST))
    if not isinstance(listed, (list, str, Mapping)) or not has(row, *PROMPTS) or isinstance(value, bool):
        return False
    return isinstance(value, (int, float, str)) and not has(row, *NUMBER_COLUMNS, "pairs", "labels")
