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


def settings(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \|(.*?)\| .+ \|$", text, re.M))


# Settings of every reward that loads a model are listed once.
SHARED = settings(PAGE.split("\n## Built-in rewards\n")[1].split("\n### ")[0])


def test_every_built_in_has_a_section_and_every_section_a_built_in():
    assert re.findall(r"^### `(.*)`$", PAGE, re.M) == list(REWARDS)


@pytest.mark.parametrize("name", REWARDS)
def test_settings_and_defaults(name):
    names = {field.name for field in fields(REWARDS[name])}
    rows = {key: default for key, default in SHARED.items() if key in names} | settings(section(name))
    expected = []
    for field in fields(REWARDS[name]):
        default = "" if field.default is MISSING else "none" if field.default is None else str(field.default)
        expected.append((field.name, default.lower() if isinstance(field.default, bool) else default))
    assert sorted((key, default.strip(" |`")) for key, default in rows.items()) == sorted(expected)


@pytest.mark.parametrize("name", REWARDS)
def test_docstrings_say_what_settings_mean(name):
    texts = [kind.__doc__ or "" for kind in REWARDS[name].__mro__]
    told = {setting for text in texts for setting in re.findall(r"^ +(\w+): ", text, re.M)}
    assert {field.name for field in fields(REWARDS[name])} <= told


def test_columns_that_sampling_gives():
    assert all(f"\n| `{column}` |" in PAGE for column in COLUMNS)
