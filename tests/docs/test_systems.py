"""The page of works names what exists."""

import re
from pathlib import Path

from preftune.cli.main import VERBS
from preftune.cli.outline import outline_of
from preftune.objectives import OBJECTIVES
from preftune.rewards import REWARDS
from preftune.selection.rules import SELECTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "systems.md").read_text(encoding="utf-8")


def test_every_objective_that_is_named_exists():
    section = PAGE.split("## Objectives")[1].split("Not here:")[0]
    rows = [row.split("|")[2] for row in section.splitlines() if row.startswith("| ") and "`" in row]
    names = set()
    for row in rows:
        for text in re.findall(r"`([^`]*)`", row):
            names |= set(re.findall(r"--objective ([\w-]+)", text)) or (
                {text.split()[0]} if not text.startswith(("-", "preftune", "train")) else set()
            )
    assert len(names) > 55
    assert names - set(OBJECTIVES) == set()
    assert set(OBJECTIVES) - names <= {
        "sft",
        "mixture",
        "bradley-terry",
        "stepwise",
        "bco-pair",
        "exo-group",
        "reinforce",
        "reward-aware-rpo",
        "cpo-simpo",
    }


def test_selections_rewards_commands_and_settings_exist():
    assert set(re.findall(r"--(?:collect\.)?selection ([\w-]+)", PAGE)) <= set(SELECTIONS)
    assert set(re.findall(r'--reward "(\w+)\(', PAGE)) <= set(REWARDS)
    assert set(re.findall(r"preftune ([\w-]+)", PAGE)) <= set(VERBS)
    outline = outline_of("train")
    assert outline is not None
    names = {setting.name for setting in outline.settings}
    assert {flag for flag in re.findall(r"--((?:collect|reference|optim)\.\w+)", PAGE)} <= names
