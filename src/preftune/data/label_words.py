"""Labels and verdicts as people write them: true, 1, good, 👍, up; b, model_b, tie."""

import re

POSITIVE = frozenset(
    [
        "true",
        "yes",
        "y",
        "t",
        "good",
        "up",
        "thumbs_up",
        "thumb_up",
        "helpful",
        "approved",
        "thumbsup",
        "like",
        "liked",
        "positive",
        "pos",
        "chosen",
        "preferred",
        "accept",
        "accepted",
        "correct",
        "desirable",
        "right",
        "upvote",
        "upvoted",
        "pass",
        "passed",
        "👍",
        "✅",
        "✓",
        "✔",
        "+",
        "+1",
        "1",
        "1.0",
    ]
)
NEGATIVE = frozenset(
    [
        "false",
        "no",
        "n",
        "f",
        "bad",
        "down",
        "thumbs_down",
        "thumb_down",
        "unhelpful",
        "not_helpful",
        "thumbsdown",
        "dislike",
        "disliked",
        "negative",
        "neg",
        "rejected",
        "dispreferred",
        "reject",
        "incorrect",
        "undesirable",
        "wrong",
        "downvote",
        "downvoted",
        "fail",
        "failed",
        "👎",
        "❌",
        "✗",
        "✘",
        "-",
        "-1",
        "-1.0",
        "0",
        "0.0",
    ]
)
NEUTRAL_WORDS = frozenset(["neutral", "tie", "unknown", "unsure", "unrated", "n/a"])
NUMBERS = frozenset(["+1", "1", "1.0", "-1", "-1.0", "0", "0.0"])
_TIES = frozenset(
    ["tie", "ties", "tied", "both", "bothbad", "bothgood", "equal", "draw", "neither", "same", "nopreference"]
)
_FIRST, _SECOND = frozenset(["first", "left"]), frozenset(["second", "right"])
_DECORATION = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")  # skin tones, and the mark that selects color
_FILLER = re.compile(r"model|responses?|answers?|assistant|completions?|outputs?|option|candidate|side|id")


def key_shown(value: object) -> str:
    """A value as a key of a mapping in an example; a placeholder for what would need quoting."""
    text = str(value)
    return text if len(text) <= 24 and not set(text) & set("{},:'\"?") else "VALUE"


_COMPARED = re.compile(r"\W*(\w+)\s*(=+|[<>]+=?|≈|~)\s*(\w+)\W*")  # as judges write them: A>B, A>>B, [[A=B]]


def _compared(match: re.Match, sides: tuple[str, str]) -> int | str | None:
    """What a comparison of the two sides states."""
    first, relation, second = match.groups()
    if {first, second} != set(sides):
        return f"the two columns end in {sides[0]} and {sides[1]}"
    if relation[0] not in "<>":
        return None
    return sides.index(first if relation[0] == ">" else second)


def label_word(value: object) -> str:
    """A label in the spelling of the tables above."""
    word = str(value).strip().lower()
    return word if word.isascii() and " " not in word else _DECORATION.sub("", word).replace(" ", "_")


def verdict_word(value: object, sides: tuple[str, str]) -> int | str | None:
    """Which of two answers a verdict prefers: 0 or 1, None for a tie; else what is unclear about it.

    `sides` are the endings of the two columns: ("a", "b"), ("1", "2") or ("0", "1").
    """
    if isinstance(value, bool):
        return "true or false does not say which answer"
    text = str(value).strip().lower()
    text = (
        text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text
    )  # a float, or one in a table
    if re.fullmatch(r"[-+]\d+(\.\d+)?", text):
        return "a number with a sign could be a strength"
    if compared := _COMPARED.fullmatch(text):
        return _compared(compared, sides)
    plain = re.sub(r"[\W_]+", "", text)
    if plain.startswith("tie") or plain in _TIES:
        return None
    if plain in _FIRST or plain in _SECOND:
        return int(plain in _SECOND)
    rest = _FILLER.sub("", plain) or plain
    if rest in sides:
        return sides.index(rest)
    return f"the two columns end in {sides[0]} and {sides[1]}"
