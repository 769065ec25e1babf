"""Verdicts from numbers made up for the purpose."""

import numpy as np
import pytest

from preftune.errors import ConfigError
from preftune.lab.criteria import Clause, Criteria, clause_values, judge_experiment, load_criteria
from preftune.lab.experiments import PLANS, SWEPT, grid_of, plans
from preftune.lab.figure_specs import runs_shown
from preftune.lab.findings import FIRST_SEED, THEORY, TUNING_SEEDS, area, load_rates, needed
from preftune.lab.loop import Track


def track(*finals: float, start: float = 0.0) -> Track:
    """Three seeds, measured at steps 0, 10 and 20; halfway there at 10."""
    end = np.array(finals)
    values = np.stack([np.full(3, start), start + (end - start) / 2, end])
    counters = {"grad_steps": [0, 10, 20], "reward_queries": [100, 200, 200]}
    return Track(steps=[0, 10, 20], measures={"return": values}, counters=counters)


TRACKS = {"high": track(0.9, 1.0, 1.1), "low": track(0.1, 0.2, 0.3), "wide": track(-1.0, 0.5, 2.0)}


def verdict(**clause) -> tuple[float, str]:
    entry = Criteria(finding="", title="", claim="", clauses=(Clause(text="", **clause),))
    found = judge_experiment("E", entry, TRACKS, {"high": 10})
    return found.clauses[0].estimate, found.verdict


@pytest.mark.parametrize(
    ("clause", "estimate", "expected"),
    [
        ({"kind": "value", "of": ("high",), "above": 0.5}, 1.0, "reproduced"),  # 1.0 +- 0.25
        ({"kind": "value", "of": ("high",), "above": 0.8}, 1.0, "fragile"),
        ({"kind": "value", "of": ("high",), "above": 1.1}, 1.0, "fragile"),
        ({"kind": "value", "of": ("high",), "above": 1.3}, 1.0, "not reproduced"),
        ({"kind": "value", "of": ("high",), "below": 1.3}, 1.0, "reproduced"),
        ({"kind": "value", "of": ("high",), "below": 0.7}, 1.0, "not reproduced"),
        (
            {"kind": "difference", "of": ("high", "low"), "above": 0.79},
            0.8,
            "reproduced",
        ),  # paired: the same in every seed
        ({"kind": "difference", "of": ("wide", "low"), "above": 0.0}, 0.3, "fragile"),
        ({"kind": "spread", "of": ("high", "low"), "below": 0.81}, 0.8, "reproduced"),
        ({"kind": "falls", "of": ("high", "low"), "above": 0.0}, 0.8, "reproduced"),
        ({"kind": "falls", "of": ("high", "low", "high"), "above": 0.0}, -0.8, "not reproduced"),
        ({"kind": "value", "of": ("high",), "at": "10", "above": 0.2}, 0.5, "reproduced"),
        ({"kind": "value", "of": ("high",), "at": "stopped", "above": 0.2}, 0.5, "reproduced"),
        (
            {"kind": "ratio", "of": ("low", "high"), "reaches": 0.4, "above": 1.9},
            2.0,
            "reproduced",
        ),  # never: 20 steps against 10
    ],
)
def test_clauses(clause, estimate, expected):
    found, said = verdict(**clause)
    assert found == pytest.approx(estimate, abs=1e-9) and said == expected


def test_one_failed_clause_fails_and_one_open_clause_leaves_open():
    def of(*clauses):
        made = tuple(Clause(text="", kind="value", of=("high",), **clause) for clause in clauses)
        return judge_experiment(
            "E", Criteria(finding="", title="", claim="", clauses=made), TRACKS, {}
        ).verdict

    assert of({"above": 0.5}, {"above": 0.6}) == "reproduced"
    assert of({"above": 0.5}, {"above": 0.8}) == "fragile"
    assert of({"above": 0.5}, {"above": 0.8}, {"above": 1.3}) == "not reproduced"


def test_first_reaching_counts_queries():
    clause = Clause(text="", kind="value", of=("high",), reaches=0.46, count="reward_queries", above=0.0)
    assert clause_values(clause, TRACKS["high"], None).tolist() == [200, 200, 200]
    clause = Clause(text="", kind="value", of=("high",), reaches=0.46, above=0.0)
    assert clause_values(clause, TRACKS["high"], None).tolist() == [20, 10, 10]


@pytest.mark.parametrize("wrong", [{"above": 1.0, "below": 2.0}, {}, {"above": 1.0, "of": ("a", "b")}])
def test_clauses_that_say_nothing_are_refused(wrong):
    with pytest.raises(ConfigError):
        Clause(**({"text": "x", "kind": "value", "of": ("a",)} | wrong))


def test_area_is_the_mean_of_the_trapezoids():
    assert area(np.array([[0.0], [1.0], [3.0]])).tolist() == [1.25]


def test_the_files_fit_one_another():
    """Every run that a clause or a figure names is planned and tuned on all of its grid, on seeds that no
    confirming run uses.
    """
    criteria, rates, planned = load_criteria(), load_rates(), plans()
    used = {
        name: set(runs)
        for name, runs in needed(criteria, runs_shown()).items()
        if name not in (*THEORY, *SWEPT)
    }
    assert set.union(*used.values()) == set(planned) == set(rates)
    for tier, made in PLANS.items():
        assert set.union(*(runs for name, runs in used.items() if criteria[name].tier == tier)) == set(made())
    for run, tuned in rates.items():
        assert tuple(tuned.scores) == grid_of(planned[run].problem) and tuned.scores[tuned.rate] == max(
            tuned.scores.values()
        )
    assert set(runs_shown()) | set(THEORY) | set(SWEPT) == set(criteria)
    assert max(TUNING_SEEDS) < FIRST_SEED
