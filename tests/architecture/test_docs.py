"""Every objective has a page that names its hyperparameters and all that it logs, and that the index leads
to.
"""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import jaxtyping
import pytest

from preftune.cli.settings import parse_settings
from preftune.objectives import OBJECTIVES
from preftune.objectives.contracts.steps import call, random_step
from preftune.train.options import TrainConfig
from tests.contracts.variants import variants_of

PAGES = Path(__file__).resolve().parents[2] / "docs" / "objectives"
SECTIONS = ["Equation", "Hyperparameters", "Logged metrics", "Notes", "Example"]
names = pytest.mark.parametrize("name", OBJECTIVES)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def section(name: str, title: str) -> str:
    return page(name).split(f"\n## {title}\n")[1].split("\n## ")[0]


@names
def test_page_follows_the_template(name):
    text = page(name)
    assert text.startswith(f"# {name}: ")
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS


@names
def test_page_names_each_hyper_parameter_and_its_default(name):
    kind = OBJECTIVES[name]
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", section(name, "Hyperparameters"), flags=re.MULTILINE)
    assert [row for row, _ in rows] == [field.name for field in fields(kind)]
    for (_, shown), field in zip(rows, fields(kind), strict=True):
        default, shown = field.default, shown.strip("`")
        if isinstance(default, bool):
            assert shown == str(default).lower(), field.name
        elif isinstance(default, (int, float)):
            assert float(shown) == default, field.name
        else:
            assert shown == ("none" if default is None else default), field.name
    summary = next(line for line in page(name).splitlines() if line.startswith("| hyperparameters |"))
    assert "none" in summary or re.findall(r"`(\w+)`", summary) == [field.name for field in fields(kind)]


@names
def test_page_names_everything_that_is_logged(name):
    text = section(name, "Logged metrics")
    logged = {
        metric for variant in variants_of(name) for metric in call(random_step(seed=0), variant).metrics
    }
    if name == "sft":  # rejected completions are not computed in training
        logged.remove("logps/rejected")
    assert [metric for metric in ["loss", *sorted(logged)] if f"`{metric}`" not in text] == []


@names
def test_page_says_whether_there_is_a_reference(name):
    line = next(line for line in page(name).splitlines() if line.startswith("| reference |"))
    assert line.split("|")[2].strip().startswith("yes" if "ref_logp" in OBJECTIVES[name]().needs else "no")


@names
def test_page_shows_a_command_with_its_own_settings(name, monkeypatch):
    """And one that the command line takes."""
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as for a user: no type checker in the way
    command = section(name, "Example").strip()
    assert f"--objective {name} " in command
    words = shlex.split(command.removeprefix("preftune train "))
    settings = parse_settings(TrainConfig, words, prog="preftune train", description="")
    assert type(settings.objective) is OBJECTIVES[name]


def test_index_leads_to_every_page_and_every_page_is_of_an_objective():
    linked = set(re.findall(r"\]\(([\w-]+)\.md\)", (PAGES / "index.md").read_text()))
    assert linked == set(OBJECTIVES)
    assert {path.stem for path in PAGES.glob("*.md")} == set(OBJECTIVES) | {"index"}


@names
def test_what_was_not_verified_is_said_in_both_places(name):
    """A page that calls its formula unverified has a docstring that does, and the other way round."""
    docstring = " ".join((OBJECTIVES[name].__doc__ or "").split())
    unverified = "formula not verified against the paper"
    assert (unverified in " ".join(page(name).split())) == (unverified in docstring)


def test_design_decisions_stay_short():
    lines = (PAGES.parent / "dev" / "decisions.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 250
