"""Text from files cannot command the terminal that shows it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.terminal import clean_terminal


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain\ttext\nü 😊", "plain\ttext\nü 😊"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1;2q...\x1b\\after", "after"),
        ("\x9b31mred", "red"),
        ("\x9d0;title\x9cafter", "after"),
        ("\x1bcreset", "reset"),
        ("\x1b(Bcharset", "charset"),
        ("over\rwritten\x08\x7f\x00", "overwritten"),
        ("\u202eright to left\u202c\u2066x\u2069\u200f", "right to leftx"),
        ("\x1b\x1b[31m[31mnested", "[31mnested"),
        ("\x1b]0;never closed", "0;never closed"),
        ("half \ud800 pair", "half  pair"),
    ],
)
def test_commands_are_taken_out(text, clean):
    assert clean_terminal(text) == clean


pieces = st.sampled_from(
    ["\x1b", "[", "]", "31m", "\x07", "\x9b", "\x9d", "\\", "a", "\n", "\u202e", "\x00", "P"]
)


@given(st.lists(pieces, max_size=12).map("".join) | st.text())
def test_nothing_that_commands_is_left(text):
    clean = clean_terminal(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", clean)
    assert clean_terminal(clean) == clean
    clean.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_stays(text):
    assert clean_terminal(text) == text
