"""Checks of words that several commands share."""

import pytest

from preftune.cli.checks import take_switch


@pytest.mark.parametrize(
    ("words", "is_on"),
    [
        ("--resume RUN", False),
        ("--resume RUN --json", True),
        ("--resume RUN --json true", True),
        ("--json=true --resume RUN", True),
        ("--json --resume RUN", True),
        ("--resume RUN --json false", False),
        ("--resume RUN --json=False", False),
    ],
)
def test_a_switch_leaves_the_other_words(words, is_on):
    assert take_switch(words.split(), "json") == (is_on, ["--resume", "RUN"])
