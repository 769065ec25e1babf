"""`preftune lab` from the command line."""

import json

import pytest
import yaml

from preftune.cli.main import main
from preftune.lab.criteria import load_criteria
from preftune.lab.problem import shipped_problems
from tests.fresh import run_fresh

PROBLEM = {
    "name": "mine",
    "policy": "tabular",
    "size": 5,
    "reward": {"kind": "table", "table": [0, 1, 2, 3, 4]},
    "reference": {"kind": "tilted", "tilt": -2},
    "contexts": {"train": 4},
}


def lab(capsys, *words: str, code: int = 0) -> str:
    assert main(["lab", *map(str, words)]) == code
    told = capsys.readouterr()
    return told.out if code == 0 else told.err


def test_the_laboratory_loads_no_model_library():
    code = (
        "import sys, preftune.commands.lab\n"
        "assert preftune.commands.lab.run(['list']) == 0\n"
        "heavy = {'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run_fresh(code)


def test_list_and_show(capsys, tmp_path):
    listed = lab(capsys, "list")
    assert all(f"\n{name} " in listed for name in (*load_criteria(), *shipped_problems()))
    assert set(json.loads(lab(capsys, "list", "--json"))["experiments"]) == set(load_criteria())
    shown = lab(capsys, "show", "E4", "--output", tmp_path)
    assert "ipo minus best-of-n" in shown and "above 0.2" in shown and "There is no verdict yet" in shown
    assert yaml.safe_load(lab(capsys, "show", "r1"))["size"] == 100
    assert lab(capsys) == lab(capsys, "--help")


def test_a_problem_of_one_s_own(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(PROBLEM))
    words = [
        "run",
        path,
        "--objectives",
        "bnf,dpo,kto",
        "--output",
        tmp_path / "out",
        "--seeds",
        "3",
        "--tuning_seeds",
        "2",
        "--rates",
        "[0.01,0.1]",
        "--steps",
        "30",
        "--workers",
        "1",
    ]
    told = lab(capsys, *words)
    assert "bnf" in told and "result.json" in told
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["objectives"]) == {"bnf", "dpo", "kto"} and result["loop"]["steps"] == 30
    assert result["seeds"] == [1000, 1001, 1002] and result["tuning_seeds"] == [998, 999]
    for entry in result["objectives"].values():
        scores = {float(rate): score for rate, score in entry["tuning"].items()}
        assert set(scores) == {0.01, 0.1} and entry["learning_rate"] == max(
            scores, key=lambda rate: scores[rate]
        )
        reward = entry["measures"]["return"]
        assert (
            reward["low"][-1] <= reward["mean"][-1] <= reward["high"][-1]
            and reward["mean"][-1] > reward["mean"][0]
        )
    assert (tmp_path / "out" / "result.svg").read_text().count("<svg") == 1
    assert "is there already" in lab(capsys, *words, code=2)
    again = json.loads(lab(capsys, *words, "--overwrite", "--json"))
    assert again["objectives"]["bnf"]["measures"] == result["objectives"]["bnf"]["measures"]


RATES = {"with four rates": (), "with two": ("--rates", "[0.01,0.1]"), "with one": ("--rates", "[0.1]")}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_lab_run_is_compare_on_a_problem(rates, capsys, tmp_path):
    """The same arguments: the same rates, the same numbers."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(PROBLEM))
    words = [*rates, "--objectives", "bnf,dpo(beta=0.5)", "--steps", "20", "--json"]
    result = json.loads(lab(capsys, "run", path, *words, "--output", tmp_path / "lab", "--workers", "1"))
    assert main(["compare", "--problem", *map(str, [path, *words, "--output", tmp_path / "race"])]) == 0
    content = json.loads(capsys.readouterr().out)
    assert result["seeds"] == content["seeds"] and result["tuning_seeds"] == content["tuning_seeds"]
    assert list(result["objectives"]) == list(content["methods"]) == ["bnf", "dpo(beta=0.5)"]
    ended = {row["method"]: row["mean"] for row in content["places"]}
    for method, entry in result["objectives"].items():
        runs = content["methods"][method]["runs"]
        assert {run["rate"] for run in runs} == {entry["learning_rate"]}
        curve = entry["measures"]["return"]
        assert curve["mean"][-1] == pytest.approx(ended[method]["mean"], rel=1e-5)
        assert curve["low"][-1] == pytest.approx(ended[method]["low"], rel=1e-5)
        assert entry["measures"]["kl"]["mean"][-1] == pytest.approx(
            sum(run["measures"]["kl"] for run in runs) / len(runs), rel=1e-5
        )
        tuned = {run["rate"]: run["score"] for run in content["methods"][method]["tuning"]}  # the last round
        assert {float(rate): score for rate, score in entry["tuning"].items()} == pytest.approx(
            tuned, rel=1e-5
        )


def test_the_defaults_of_both_are_the_same():
    from preftune.commands.lab import LabRunConfig
    from preftune.race.options import BudgetOptions, CompareConfig

    one = LabRunConfig(problem="overlap", objectives="bnf,dpo")
    other = CompareConfig(
        problem="overlap", objectives="bnf,dpo", output="x", budget=BudgetOptions(steps=200)
    )
    assert one.lab_race() == other.lab_race()


def test_a_method_of_which_every_rate_fails(capsys, tmp_path):
    words = ["--objectives", "ipo,bnf", "--rates", "[1e30,1e29]", "--steps", "4", "--workers", "1"]
    told = lab(capsys, "run", "r1", *words, "--output", tmp_path)
    assert "every learning rate failed in tuning" in told
    failed, other = json.loads((tmp_path / "result.json").read_text())["objectives"].values()
    assert failed["learning_rate"] is None and set(failed["tuning"].values()) == {None}
    assert "measures" in other and "failed" not in other


def test_the_same_seeds_give_the_same_verdicts(capsys, tmp_path):
    """On one process or two; and a page with what it says."""
    words = ["all", "--only", "[Xc,Xh]", "--seeds", "3"]
    lab(capsys, *words, "--output", tmp_path / "one", "--workers", "1")
    lab(capsys, *words, "--output", tmp_path / "two", "--workers", "2")
    one, two = ((tmp_path / name / "verdicts.json").read_bytes() for name in ("one", "two"))
    assert one == two
    verdicts = json.loads(one)
    assert [entry["id"] for entry in verdicts["verdicts"]] == ["Xc", "Xh"] and verdicts["seeds"] == [
        1000,
        1001,
        1002,
    ]
    page = (tmp_path / "one" / "lab.html").read_text()
    assert "<script" not in page and page.count("<svg") == 2 and load_criteria()["Xc"].claim in page
    assert "Verdict: " in lab(capsys, "show", "Xc", "--output", tmp_path / "one")
    assert (tmp_path / "one" / "figures" / "Xc.svg").is_file()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("walk",), "There is no such action"),
        (
            ("show", "quark"),
            "There is no such experiment or problem; got quark. `preftune lab list` lists them.",
        ),
        (("show", "e4"), "Did you mean E4?"),
        (("show", ""), "There is no such experiment or problem; got nothing."),
        (("run", "r1", "--seeds", "1000000"), "seeds is out of range"),
        (("all", "--first_seed", "1000000000000000000000"), "first_seed is out of range"),
        (("all", "--only", "[E11]"), "E11 is not in the tier small. Give --tier gpt."),
        (("tune", "x.yaml", "--tier", "all"), "Invalid value for tier"),
        (("run", "/nowhere"), "There is no such problem"),
        (("run", "r1", "--objectives", "hypo"), "samples that nobody judged"),
        (("run", "r1", "--objectives", "magic"), "There is no such objective; got magic"),
        (("run", "r1", "--objectives", "bnf,bnf"), "A method is given twice"),
        (("run", "r1", "--steps", "3"), "loop.steps is too small for the first round of tuning"),
        (("run", "r1", "--objectives", ","), "No objective is named"),
        (("run", "r1", "--rates", "[-1.0]"), "A learning rate is out of range"),
        (("run", "r1", "--epochs", "3"), "epochs has no effect"),
        (("run", "r1", "--seeds", "1"), "seeds is out of range"),
        (("all", "--first_seed", "3"), "first_seed is out of range"),
        (("all", "--only", "[E99]"), "There is no such experiment"),
        (("all", "--workers", "0"), "workers is out of range"),
        (("list", "--color", "red"), "Unknown option"),
    ],
)
def test_mistakes_are_one_line(words, wanted, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = lab(capsys, *words, code=2)
    assert wanted in told and told.count("\n") == 1


def test_rates_that_cannot_be_written(capsys):
    told = lab(capsys, "tune", "/dev/null/x", code=4)  # the status of storage, not of a mistake in the words
    assert "Cannot make the folder at /dev/null" in told and told.count("\n") == 1
