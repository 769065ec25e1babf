"""The page of rewards names every built-in and every setting with its default, and says them as the
docstrings do.
"""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from preftune.rewards import COLUMNS, REWARDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return PAGE.split(f"\n### `{name}`\n")[1].split("\n### ")[0]


def test_every_built_in_has_a_section_and_every_section_a_built_in():
    assert re.findall(r"^### `(.*)`$", PAGE, re.M) == list(REWARDS)


@pytest.mark.parametrize("name", REWARDS)
def test_settings_and_defaults(name):
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\| .+ \|$", section(name), re.M)
    expected = []
    for field in fields(REWARDS[name]):
        default = "" if field.default is MISSING else "none" if field.default is None else str(field.default)
        expected.append((field.name, default.lower() if isinstance(field.default, bool) else default))
    assert sorted((key, default.strip(" |`")) for key, default in rows) == sorted(expected)


@pytest.mark.parametrize("name", REWARDS)
def test_docstrings_say_what_settings_mean(name):
    texts = [kind.__doc__ or "" for kind in REWARDS[name].__mro__]
    told = {setting for text in texts for setting in re.findall(r"^ +(\w+): ", text, re.M)}
    assert {field.name for field in fields(REWARDS[name])} <= told


def test_columns_that_sampling_gives():
    assert all(f"\n| `{column}` |" in PAGE for column in COLUMNS)
