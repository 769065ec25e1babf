"""Repetition within a text and between texts. Pure."""

import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

PUNCTUATION = string.punctuation + "“”‘’«»…–—¿¡"


def split_words(text: str) -> list[str]:
    """Words without case and surrounding punctuation."""
    stripped = (piece.strip(PUNCTUATION) for piece in text.casefold().split())
    return [word for word in stripped if word]


def is_repetitive(text: str) -> bool:
    """Some run of 4 words occurs 3 times or more, or fewer than 40% of more than 20 words are distinct."""
    words = split_words(text)
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(runs.values(), default=0) >= 3 or (len(words) > 20 and len(set(words)) < 0.4 * len(words))


def distinct_pairs(texts: Sequence[str]) -> float:
    """Distinct-2: the share of distinct pairs of neighboring words among all of them, over all texts; NaN
    without any.
    """
    pairs = [pair for words in map(split_words, texts) for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else float("nan")
