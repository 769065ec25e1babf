"""Labels of completions: +1, -1 or neutral, and what the numbers of a whole column mean together."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from preftune.data.fields import ColumnFault, described, is_number
from preftune.data.label_words import NEGATIVE, NEUTRAL_WORDS, NUMBERS, POSITIVE, key_shown, label_word
from preftune.errors import DataError


class LabelValues:
    """The numbers that are labels in a file: 0 is dispreferred next to 1 and neutral next to -1, so not both may be."""

    __slots__ = ("bounds", "minus", "places", "stated", "zero")

    def __init__(self, stated: Mapping[str, Any] | None = None) -> None:
        self.zero = self.minus = False
        self.stated = {} if stated is None else stated  # fields that the user mapped, and their columns
        self.places: dict[str, int] = {}  # column of places of answers -> the least place
        self.bounds: dict[object, tuple[float, float]] = {}  # prompt -> (least reward of +1, greatest of -1)

    def check(self, prompt: object, label: int | None, reward: float | None, name: str) -> None:
        """Rewards next to the labels of one prompt must not contradict them."""
        if label is None or reward is None:
            return
        key = hash(prompt)
        least, greatest = self.bounds.get(key, (math.inf, -math.inf))
        least, greatest = (min(least, reward), greatest) if label > 0 else (least, max(greatest, reward))
        self.bounds[key] = least, greatest
        if least < greatest:
            raise DataError(
                f"The column {name} contradicts the labels of this prompt",
                got=f"{least:g} for a preferred completion and {greatest:g} for a dispreferred one",
                expected="preferred completions that are not worse",
                do=f"If the column means something else, use --rows.ignore {name}",
            )

    def column_of(self, field: str) -> str:
        """The user's name for the column that one of our fields came from."""
        column = self.stated.get(field, field)
        return column if isinstance(column, str) else column["column"]

    def note_place(self, place: int, name: str) -> None:
        """One more number that is the place of an answer."""
        self.places[name] = min(place, self.places.get(name, place))

    def check_places(self) -> None:
        """An error if places could be counted from 0 or from 1, unless the user stated what they are."""
        for name, least in self.places.items():
            if (
                least > 0
                and name not in self.stated
                and not any(other == 0 for other in self.places.values())
            ):
                raise ColumnFault(
                    f"The column {name} holds places of answers and never 0, so they could be counted from 0 or 1",
                    got=f"{least} as the least place",
                    expected="places counted from 0",
                    do=f"If they are counted from 0, use --rows.columns best={name}; if from 1, use "
                    f"--rows.columns 'best={name}{{1:0,2:1,3:2,4:3}}'",
                )

    def note(self, value: object, name: str) -> None:
        """One more label of the file."""
        if value in (0, "0", "0.0") and value is not False:
            self.zero = True
        elif value in (-1, "-1", "-1.0"):
            self.minus = True
        if self.zero and self.minus:
            raise ColumnFault(
                f"The column {name} holds 0 and -1, and 0 could mean dispreferred or neutral",
                got="labels 0 and -1",
                expected="1 and 0, or 1 and -1",
                do=f"State what the values mean, as in --rows.columns '{name}={name}{{1:1,0:0,-1:-1}}', "
                "where 0 is neutral if -1 occurs",
            )


def as_label(value: object, name: str, seen: LabelValues | None = None) -> int | None:
    """+1 or -1 from a boolean, 0 or 1, +1 or -1, or a usual word; None from a word for neutral."""
    label = name.partition("[")[0]  # of labels[2]
    column = label if seen is None else seen.column_of(label)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"The field {name} is empty", got=described(value), expected="a label")
    if isinstance(value, (bool, int, float, str, Decimal)):
        word = label_word(value)
        if seen is not None and word in NUMBERS:
            seen.note(value, label)
        if word in POSITIVE:
            return 1
        if word in NEGATIVE:
            return -1
        if word in NEUTRAL_WORDS:
            return None
        if is_number(word):
            raise ColumnFault(
                f"The column {column} holds other numbers than 1, 0 and -1, so it is no label but a rating",
                got=described(value),
                expected="true or false, 1 or 0, +1 or -1",
                do=f"State what its values mean, as in --rows.columns '{label}={column}{{>=4:1,<=2:-1,>2:0}}', "
                f"or read it as a reward: --rows.columns reward={column}",
            )
    raise DataError(
        f"The label in {name} is not understood",
        got=described(value),
        expected="true or false, 1 or 0, +1 or -1, or words such as good and bad",
        do=f"State what each value means with 1 or -1 in place of each ?, as in --rows.columns "
        f"'{label}={column}{{{key_shown(value)}:?,OTHER:?}}'",
    )
