"""Repeated rows: word for word, but for case and punctuation, and nearly."""

import numpy as np
import pytest

from preftune.measures.duplicates import NEAR, jaccard, normalized, repeats, repeats_of, shingles

WORDS = [f"word{k}" for k in range(60)]
LONG = " ".join(WORDS)


def changed(*places: int) -> str:
    return " ".join("other" + str(k) if k in places else word for k, word in enumerate(WORDS))


def test_kinds_of_likeness():
    rows = [
        (LONG,),
        (LONG,),
        (LONG.upper() + "!",),
        (changed(0),),
        (changed(10, 20, 30, 40),),
        ("something else",),
    ]
    told = repeats(rows)
    assert told.exact == (None, 0, None, None, None, None)
    assert told.normalized == (None, 0, 0, None, None, None)
    assert told.near == (None, 0, 0, 0, None, None)  # 57 of 59 shingles in common; 46 of 70
    assert [told.share(kind) for kind in ("exact", "normalized", "near")] == [1 / 6, 2 / 6, 3 / 6]


def test_all_parts_must_repeat():
    """A long prompt with another answer is no repetition, nor is a common answer to another prompt."""
    assert repeats([(LONG, "yes"), (LONG, "no"), ("short", "yes")]).near == (None, None, None)
    assert repeats([(LONG, changed(1)), (changed(0), LONG)]).near == (None, 0)


def test_others_and_nothing():
    told = repeats_of([("Hello, there.",), ("new",), ("Hello there",)], [("x",), ("hello there",)])
    assert told.exact == (None, None, None) and told.normalized == (1, None, 1) == told.near
    assert repeats([]).share() == 0 and repeats_of([], [("a",)]).near == ()
    assert repeats([("",), ("",), ("?!",)]).near == (None, 0, None)


def test_normalized():
    assert normalized("  Ｈｅllo,\n WORLD! ") == "hello world"  # full-width letters, case, space, punctuation
    assert normalized("?!") == "?!"


def test_shingles_and_jaccard():
    assert len(shingles("a b c d")) == 2 and len(shingles("a b")) == 1 and len(shingles("")) == 0
    assert jaccard(shingles("a b c d"), shingles("b c d e")) == pytest.approx(1 / 3)
    assert jaccard(shingles("a b c"), shingles("c b a")) == 0  # the order counts
    assert jaccard(shingles(""), shingles("")) == 1


def test_bands_find_what_is_near():
    """Of rows just above the bound hardly one is missed, among many that are not near."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(100):
        words = [str(random.integers(10**6)) for _ in range(200)]
        other = list(words)
        for k in (20, 60, 100, 140, 180, 50):  # 6 changes touch 18 of 198 shingles: 180/216 = 0.83
            other[k] = "x" + other[k]
        one, two = " ".join(words), " ".join(other)
        assert jaccard(shingles(one), shingles(two)) >= NEAR
        missed += repeats([(one,), (two,)]).near[1] is None
    assert missed <= 1
