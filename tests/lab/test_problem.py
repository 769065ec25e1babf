"""Mistakes in a problem file are one sentence that names the place."""

from pathlib import Path

import pytest
import yaml

from preftune.errors import ConfigError
from preftune.lab.problem import load_problem, problem_from

GOOD = {
    "name": "mine",
    "policy": "tabular",
    "size": 3,
    "reward": {"kind": "table", "table": [0, 1, 2]},
    "reference": {"kind": "table", "table": [0.5, 0.3, 0.2]},
}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"color": 1}, "has no such setting; got color"),
        ({"sise": 3}, "Did you mean size?"),
        ({"size": None}, "has a value that it cannot take; got null; expected a whole number"),
        ({"size": 2.5}, "expected a whole number"),
        ({"size": True}, "expected a whole number"),
        ({"size": 1}, "A problem needs a choice"),
        ({"size": 4}, "Each outcome needs its reward; got 3 rewards of 4 outcomes"),
        ({"reward": {"kind": "table", "table": []}}, "got 0 rewards of 3 outcomes"),
        ({"reward": {"kind": "table", "table": [0, "x", 2]}}, "entry 2 of table of reward of "),
        ({"reward": {"table": [1]}}, "has no kind"),
        ({"reward": {"kind": "hill"}}, "unknown kind; got hill; expected bump, table, short, near"),
        ({"reward": {"kind": "bump", "centre": 1}}, "needs a setting; got no width"),
        ({"reward": {"kind": "bump", "centre": 1, "width": 0}}, "width"),
        ({"reward": {"kind": "short"}}, "needs answers that have one"),
        ({"reference": {"kind": "table", "table": [0.5, 0.3, 0.1]}}, "do not sum to one; got a sum of 0.9"),
        ({"reference": {"kind": "table", "table": [1.5, -0.3, -0.2]}}, "below 0"),
        ({"reference": {"kind": "table", "table": [0.5, 0.5]}}, "got 2 probabilities of 3 outcomes"),
        ({"reference": {"kind": "uniform", "tilt": 1}}, "has no such setting; got tilt"),
        ({"data": {"completions": 0}}, "The data are empty"),
        ({"contexts": {"train": 0}}, "The data are empty"),
        ({"contexts": {"held_out": 5}}, "no effect on the policy tabular"),
        ({"policy": "positions", "length": 2, "contexts": {"train": 5}}, "no effect on the policy positions"),
        ({"data": {"noise": 0.7}}, "noise"),
        ({"data": {"ties": "toss"}}, "expected drop or keep"),
        ({"data": {"ties": "keep", "min_gap": 0.1}}, "Ties cannot be kept"),
        ({"data": {"law": {"kind": "truncated", "mean": 3}}}, "Only answers with a length"),
        ({"data": [1]}, "data of "),
        ({"policy": "magic"}, "expected tabular, mlp, gpt"),
        ({"policy": "gpt"}, "2 or more for positions and gpt"),
        (
            {"policy": "gpt", "length": 2},
            "no numbers of this many digits; got size 3, length 2; expected a power: 4 or 9",
        ),
        ({"policy": "gpt", "size": 4096, "length": 12}, "too many prefixes to list; got 4095"),
        ({"size": 100_000_000}, "A problem needs a choice; got size 100000000; expected 2 to 10000"),
        ({"policy": "gpt", "length": -1}, "length does not go with"),
        ({"length": 3}, "length does not go with the policy"),
        ({"reward_model": {"pairs": 10}}, "for lengths only"),
    ],
)
def test_mistakes(change, wanted, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_problem(str(path)).size == 3
    path.write_text(yaml.safe_dump(GOOD | change))
    with pytest.raises(ConfigError) as told:
        load_problem(str(path))
    assert wanted in str(told.value) and "\n" not in str(told.value)


def test_the_problem_of_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")
    problem = problem_from(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]), "docs")
    assert problem.data_law()[-1] > problem.reference_law()[-1]  # data that lean to the good arms


@pytest.mark.parametrize(
    ("text", "wanted"), [("[1]", "is not a mapping"), ("a: [", "is not valid YAML"), ("", "is not a mapping")]
)
def test_files_that_are_no_problem(text, wanted, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        load_problem(str(tmp_path / "p.yaml"))
    with pytest.raises(ConfigError, match="There is no such problem"):
        load_problem("r99")
