"""Formats of answers and what they predict, against values counted by hand."""

import pytest

from preftune.measures.formats import STYLES, format_bias, format_rewards, has_format

EXAMPLES = {
    "list": ["- one\n- two", "Steps:\n1. Go", "  * item", "2) two"],
    "bold": ["a **word**", "__x__", "<b>x</b>"],
    "link": ["[a](b.html)", "see https://x.org", "www.x.org"],
    "emoji": ["good \U0001f600", "\u2705 done"],
    "exclamation": ["Yes!"],
    "affirmation": ["Sure, here", "Certainly!", "  Of course."],
}
PLAIN = [
    "The sum is 4.",
    "a - b = 2 * 3",
    "I am not sure.",
    "x__y and [z]",
    "1984 was a year.",
    "![image] is none",
]


def test_patterns():
    for name, texts in EXAMPLES.items():
        assert [text for text in texts if not has_format(text, name)] == []
    assert [(name, text) for name in STYLES for text in PLAIN if has_format(text, name)] == []


def test_bias_by_hand():
    """Bold: pairs +1, 0 (both), 0 (none), -1 of prompts 0, 0, 1, 2: means 1/2, 0, -1."""
    pairs = [("**a**", "b"), ("**a**", "**b**"), ("a", "b"), ("a", "**b**")]
    found = format_bias(pairs, [0, 0, 1, 2])
    assert set(found) == {"bold"}
    one = found["bold"]
    assert (one.chosen, one.rejected, one.wins, one.num_unequal) == (0.5, 0.5, 0.5, 2)
    assert one.difference.mean == pytest.approx(-0.5 / 3)


def test_what_a_reward_gives_for_a_format():
    """Prompt 0: 3 with, (1 + 0) / 2 without; prompt 1: 2 against 2; prompt 2 has no plain answer."""
    texts = [["a!", "b", "c"], ["a!", "b", "c"], ["a!", "b!", "c!"]]
    found = format_rewards(texts, [[3.0, 1.0, 0.0], [2.0, 2.0, None], [9.0, 9.0, 0.0]])
    assert set(found) == {"exclamation"} and found["exclamation"].mean == pytest.approx(1.25)
    assert format_rewards(texts[:1], [[3.0, 1.0, 0.0]]) == {}
