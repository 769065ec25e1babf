"""What else a row states about a pair must not contradict it: scores of each side, a margin, ratings of a list."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from preftune.data.column_kinds import snake
from preftune.data.fields import Row, as_reward_or_none, has
from preftune.data.row_view import RowView
from preftune.errors import DataError

_SIDES = ("chosen", "rejected")
_SCORES = frozenset(
    [
        "score",
        "scores",
        "rating",
        "ratings",
        "reward",
        "rewards",
        "votes",
        "upvotes",
        "quality",
        "correct",
        "correctness",
        "safe",
        "helpfulness",
        "harmlessness",
        "helpful",
        "harmless",
    ]
)
_LISTS = ("generations", "completions", "responses", "all_generated_responses")
_RATINGS = ("rating", "ratings", "scores", "rewards", "all_rm_scores")
CHECKED = "checked: it must not contradict the pair"


def check_pair(view: RowView) -> None:
    """An error if a score contradicts the pair. The columns that were compared count as used."""
    for chosen, rejected in _scores_of(view.row):
        _check(view, chosen, rejected)
    _check_margin(view)
    _check_ratings(view)


def _scores_of(row: Row) -> list[tuple[str, str]]:
    """Columns such as score_chosen and score_rejected, chosen-rating and rejected-rating."""
    twins = [(name, twin) for name in row if (twin := _twin(name)) is not None and twin in row]
    return [(name, twin) for name, twin in twins if has(row, name) and has(row, twin)]


@lru_cache(maxsize=1024)
def _twin(name: object) -> str | None:
    """The name of the rejected side's score, if this is the name of the chosen side's."""
    if not isinstance(name, str) or "chosen" not in name or _SCORES.isdisjoint(snake(name).split("_")):
        return None
    return name.replace(*_SIDES)


def _check(view: RowView, first: str, second: str) -> None:
    chosen, rejected = (_score(view.row[name], name) for name in (first, second))
    if chosen is not None and rejected is not None and chosen < rejected:
        raise DataError(
            f"The scores {first} and {second} contradict the pair",
            got=f"{chosen:g} for chosen and {rejected:g} for rejected",
            expected="a chosen completion that is not worse",
            do=f"If the scores mean something else, use --rows.ignore {first},{second}",
        )
    view.used |= dict.fromkeys((first, second), "checked: they must not contradict the pair")


def _score(value: object, name: str) -> float | None:
    """A score, or None where it is not known (null, N/A, NaN)."""
    return None if value != value else as_reward_or_none(value, name)


def _check_margin(view: RowView) -> None:
    if view.row.get("margin") is None:
        return
    margin = _score(view.row["margin"], "margin")
    if margin is not None and margin < 0:
        raise DataError(
            "The margin contradicts the pair",
            got=f"{margin:g}",
            expected="0 or more: the chosen completion is better",
            do="If the column means something else, use --rows.ignore margin",
        )
    view.used["margin"] = CHECKED


def _check_ratings(view: RowView) -> None:
    """Ratings of a list of answers that contains both sides of the pair."""
    row = view.row
    texts = next((row[name] for name in _LISTS if isinstance(row.get(name), list)), None)
    if not isinstance(texts, list):
        return
    places = [_place(row, side, texts) for side in _SIDES]
    if None in places or places[0] == places[1]:
        return
    for name in _RATINGS:
        ratings = row.get(name)
        if not isinstance(ratings, list) or len(ratings) != len(texts):
            continue
        chosen, rejected = (_score(ratings[place], name) for place in places if place is not None)
        if chosen is not None and rejected is not None and chosen < rejected:
            raise DataError(
                f"The column {name} contradicts the pair",
                got=f"{chosen:g} for chosen and {rejected:g} for rejected",
                expected="a chosen completion that is not worse",
                do=f"If the column means something else, use --rows.ignore {name}",
            )
        view.used[name] = CHECKED


def _place(row: Row, side: str, texts: Sequence[object]) -> int | None:
    """Where the answer of a side is in a list of texts."""
    value = next((row[name] for name in (side, f"{side}_response") if row.get(name) is not None), None)
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content", value[-1].get("value"))
    stripped = [text.strip() if isinstance(text, str) else None for text in texts]
    return stripped.index(value.strip()) if isinstance(value, str) and value.strip() in stripped else None
