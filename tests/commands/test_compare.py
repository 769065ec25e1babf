"""`preftune compare` on tiny models and on a lab problem: a table, a page, and no run lost when it is cut."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.cli.settings import parse_settings
from preftune.objectives.dpo import DPO
from preftune.race.contenders import contenders
from preftune.race.options import BudgetOptions, CompareConfig
from tests.folders import PAIRS, write_rows
from tests.refusals import refusal

ROOT = Path(__file__).parents[2]
METHODS = "bnf,dpo(beta=0.5),rloo,sft(selection=best-of-n)"
TASTE = """
import os, pathlib, signal
def taste(prompts, completions, **columns):
    count = pathlib.Path(__file__).with_name("count")
    if count.exists():
        left = int(count.read_text()) - 1
        count.write_text(str(left))
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
    return [float(sum(map(c.count, "aeiou"))) for c in completions]
"""


def told(capsys, *words, code=0) -> tuple[str, str]:
    assert main(["compare", *map(str, words)]) == code
    out = capsys.readouterr()
    return out.out, out.err


def untimed(path: Path) -> dict:
    """comparison.json without what depends on the clock."""
    content = json.loads((path / "comparison.json").read_text())
    runs = [run for entry in content["methods"].values() for run in (*entry["tuning"], *entry["runs"])]
    for part in (*runs, *content["places"]):
        part["counters"].pop("seconds", None)
        part.get("measures", {}).pop("step_time", None)
    return content


@pytest.fixture
def own_samples(tiny_folder, tmp_path):
    """Flags of four methods on their own samples: two seeds, one rate, three draws of eight completions each."""
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {k}."} for k in range(8)])
    (tmp_path / "taste.py").write_text(TASTE)
    return [
        "--model",
        tiny_folder,
        "--data",
        data,
        "--source",
        "on-policy",
        "--reward",
        f"{tmp_path / 'taste.py'}:taste",
        "--objectives",
        METHODS,
        "--samples",
        24,
        "--seeds",
        2,
        "--rates",
        "[0.01]",
        "--batch_size",
        2,
        "--num_completions",
        4,
        "--max_new_tokens",
        6,
        "--eval_fraction",
        0.25,
        "--schedule",
        "constant",
        "--warmup_ratio",
        0,
    ]


def test_a_comparison_that_was_interrupted_ends_as_if_it_had_not_been(own_samples, tmp_path, capsys):
    out, _ = told(capsys, *own_samples, "--output", tmp_path / "whole")
    assert "best in held-out reward" in out
    # Five calls of the reward a run (three draws, two evaluations and one more on the way): the second run is
    # cut within.
    (tmp_path / "count").write_text("9")
    _, err = told(capsys, *own_samples, "--output", tmp_path / "cut", code=130)
    assert f"the same command goes on with what is in {tmp_path / 'cut'}" in err
    first, second = (
        tmp_path / "cut" / "runs" / "bnf" / f"rate-0.01-samples-24-seed-{seed}" for seed in (1000, 1001)
    )
    assert (first / "result.json").exists() and not (second / "result.json").exists()
    assert (
        list((second / "checkpoints").glob("step-*")) and not (tmp_path / "cut" / "comparison.json").exists()
    )
    begun = (first / "metrics.jsonl").stat().st_mtime_ns
    (tmp_path / "count").unlink()
    for done in (
        tmp_path / "whole" / "runs"
    ).iterdir():  # the other methods, as if they had been run before: it takes less time
        shutil.copytree(done, tmp_path / "cut" / "runs" / done.name) if done.name != "bnf" else None
    told(capsys, *own_samples, "--output", tmp_path / "cut")
    assert (first / "metrics.jsonl").stat().st_mtime_ns == begun
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    _check_content(tmp_path / "whole")


def _check_content(folder: Path) -> None:
    content = json.loads((folder / "comparison.json").read_text())
    assert list(content["methods"]) == METHODS.split(",") and content["seeds"] == [1000, 1001]
    for entry in content["methods"].values():
        assert [run["seed"] for run in entry["runs"]] == [1000, 1001] and entry["tuning"] == []
        for run in entry["runs"]:
            assert run["counters"]["samples_drawn"] == 24 and run["counters"]["seconds"] > 0
            assert run["score"] == run["measures"]["reward"] == run["curve"][-1][2] and run["curve"][0][
                :2
            ] == [0, 0]
            assert "kl" in run["measures"]
    means = {
        name: sum(run["score"] for run in entry["runs"]) / 2 for name, entry in content["methods"].items()
    }
    assert [row["method"] for row in content["places"]] == sorted(means, key=lambda name: -means[name])
    best = content["places"][0]
    assert best["tied"] and best["mean"]["mean"] == pytest.approx(means[best["method"]])
    # One model is left: that of the best method's best run.
    left = [str(path.relative_to(folder)) for path in folder.rglob("final")]
    best_run = max(content["methods"][best["method"]]["runs"], key=lambda run: run["score"])
    assert left == [content["model"]] == [f"{best_run['folder']}/final"]
    assert not list(folder.rglob("step-*"))
    page = (folder / "comparison.html").read_text()
    assert page.count("<script") == page.count("<svg") == 1 and "sft(selection=best-of-n)" in page
    assert content["summary"] in page


@pytest.fixture(scope="module")
def tuned(tiny_folder, tmp_path_factory):
    """A comparison on pairs with a learning rate that cannot go well."""
    folder = tmp_path_factory.mktemp("tuned")
    data = write_rows(folder / "pairs.jsonl", PAIRS)
    words = [
        "--model",
        str(tiny_folder),
        "--data",
        data,
        "--eval_data",
        data,
        "--objectives",
        "ipo,simpo",
        "--measure",
        "margin",
        "--steps",
        "4",
        "--seeds",
        "2",
        "--rates",
        "[1e-3,1e30]",
        "--batch_size",
        "4",
        "--output",
        str(folder / "out"),
    ]
    assert main(["compare", *words, "--json"]) == 0
    return folder / "out", words


def test_a_run_that_diverges_is_a_result(tuned):
    folder, _ = tuned
    content = json.loads((folder / "comparison.json").read_text())
    assert content["rungs"] == [{"rates": 2, "share": 0.5, "budget": 2}]
    for entry in content["methods"].values():
        good, bad = entry["tuning"]
        assert (good["seed"], good["counters"]["steps"], good["failed"]) == (999, 2, None)
        assert bad["score"] is None and "after step 1: The loss is not finite" in bad["failed"]
        assert [run["rate"] for run in entry["runs"]] == [1e-3, 1e-3] and [
            run["seed"] for run in entry["runs"]
        ] == [1000, 1001]
        last = entry["runs"][0]["measures"]
        assert entry["runs"][0]["score"] == pytest.approx(
            last["log_ratios/chosen"] - last["log_ratios/rejected"]
        )
    assert not list(folder.rglob("step-*"))


def test_it_may_grow_but_not_change(tuned, capsys):
    """More seeds use what is there; another budget is another comparison."""
    folder, words = tuned
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    out, err = told(capsys, *words, "--seeds", "3")
    assert "3 seeds" in out and err.count("seed 1002") == 2 and "seed 1001" not in err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(json.loads((folder / "comparison.json").read_text())["seeds"]) == 3
    _, err = told(capsys, *words, "--batch_size", "2", code=2)
    assert "was begun with other settings; got batch_size 2; expected batch_size 4" in err
    (folder / "runs" / "ipo" / "rate-0.001-steps-4-seed-1000" / "result.json").write_text("{")
    _, err = told(capsys, *words, code=4)
    assert "result.json is damaged" in err and "Delete it" in err


def test_models_may_all_stay_and_answers_be_judged(tiny_folder, tmp_path, capsys):
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    told(
        capsys,
        "--model",
        tiny_folder,
        "--data",
        data,
        "--objectives",
        "bnf,dpo",
        "--steps",
        1,
        "--seeds",
        2,
        "--rates",
        "[1e-3]",
        "--judge_prompts",
        data,
        "--judge_reward",
        "length.min",
        "--max_new_tokens",
        4,
        "--num_completions",
        2,
        "--keep_models",
        "all",
        "--output",
        tmp_path / "out",
    )
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    runs = [run for entry in content["methods"].values() for run in entry["runs"]]
    assert content["measure"]["name"] == "judged" and all(
        run["score"] == run["measures"]["judged"] for run in runs
    )
    assert len(list((tmp_path / "out").rglob("final"))) == 4


PROBLEM = [
    "--problem",
    "r1",
    "--objectives",
    "bnf,dpo(beta=0.5),ipo,rloo",
    "--steps",
    20,
    "--seeds",
    2,
    "--rates",
    "[0.001,0.01]",
]


def test_a_lab_problem(tmp_path, capsys):
    """The same as the laboratory itself finds; and a second call computes nothing."""
    from preftune.lab.environment import World
    from preftune.lab.loop import Loop, run
    from preftune.lab.methods import Method
    from preftune.lab.problem import load_problem

    out, err = told(capsys, *PROBLEM, "--output", tmp_path / "out")
    assert "expected reward" in out and err.count("\n") == 4 * (2 + 2)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    mine = content["methods"]["dpo(beta=0.5)"]["runs"]
    track = run(
        World(load_problem("r1"), [1000, 1001]),
        Method(objective=DPO(beta=0.5)),
        Loop(steps=20),
        mine[0]["rate"],
    )
    assert [one["score"] for one in mine] == pytest.approx(track.final("return").tolist(), rel=1e-6)
    again, err = told(capsys, *PROBLEM, "--output", tmp_path / "out")
    assert (again, err) == (out, "")
    shutil.rmtree(tmp_path / "out" / "runs" / "ipo")
    told(capsys, *PROBLEM, "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == content


def test_a_seed_that_diverges_takes_no_other_one_with_it(tmp_path, capsys):
    told(
        capsys,
        "--problem",
        "r1",
        "--objectives",
        "ipo,dpo",
        "--steps",
        4,
        "--seeds",
        2,
        "--rates",
        "[0.001,1e30]",
        "--tuning_seeds",
        2,
        "--output",
        tmp_path / "out",
    )
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for entry in content["methods"].values():  # a loss, or a reward, that is not finite
        assert [run["score"] is None for run in entry["tuning"]] == [False, False, True, True]
        assert all(run["failed"] is None and run["rate"] == 0.001 for run in entry["runs"])
    for run in content["methods"]["ipo"]["tuning"][2:]:  # each was tried alone
        assert f"of seeds [{run['seed']}]" in run["failed"]


def test_methods_as_they_are_written():
    plain, set_, chosen = contenders(" bnf , dpo( beta=0.5, label_smoothing = 0.1),sft(selection=best-of-n)")
    assert (plain.label, plain.slug, plain.given) == ("bnf", "bnf", ())
    assert (
        set_.objective == DPO(beta=0.5, label_smoothing=0.1)
        and set_.label == "dpo(beta=0.5,label_smoothing=0.1)"
    )
    assert (chosen.name, chosen.selection, chosen.slug) == ("sft", "best-of-n", "sft-selection-best-of-n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bnf,dppo", "There is no such objective; got dppo"),
        ("bnf", "two methods or more"),
        ("bnf,bnf", "A method is given twice"),
        (
            "bnf,dpo(betta=1)",
            "Objective 'dpo' has no such setting; got betta; expected beta, label_smoothing. Did you mean beta?",
        ),
        ("bnf,dpo(beta=x)", "has a value that it cannot take; got x; expected a number"),
        ("bnf,dpo(beta=-1)", "beta"),
        ("bnf,dpo(beta)", "is not understood"),
        ("bnf,dpo(beta=1,beta=2)", "is given twice"),
        ("bnf,dpo(beta=1", "is not understood"),
        ("bnf,dpo(beta=1)x", "is not understood"),
        ("bnf,bradley-terry", "trains a reward model"),
    ],
)
def test_methods_that_are_not_understood(text, wanted):
    assert wanted in refusal(contenders, text)


GOOD = {"data": "pairs.jsonl", "objectives": "bnf,dpo", "output": "out", "budget": BudgetOptions(steps=8)}


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        (dict(budget=BudgetOptions()), "A comparison has a budget"),
        (dict(seeds=1), "One seed gives no interval"),
        (dict(data=None), "on data or on a lab problem; got neither"),
        (dict(problem="r1"), "on data or on a lab problem; got both"),
        (dict(budget=BudgetOptions(steps=3)), "budget.steps is too small for the first round of tuning"),
        (dict(budget=BudgetOptions(samples=64)), "max_samples has no effect offline"),
        (dict(measure="reward"), "measure reward is not available offline"),
        (dict(measure="judged"), 'measure "judged" is the reward on the answers to judge_prompts'),
        (dict(judge_prompts="p.jsonl"), "judge_prompts and judge_reward belong together"),
        (dict(eval_fraction=0.0), "measure accuracy wants held-out data"),
        (dict(rates=[1e-6, -1.0]), "A learning rate is out of range"),
        (dict(tuning_seeds=0), "tuning_seeds is out of range"),
        (dict(first_seed=0), "first_seed is out of range"),
        (dict(objectives="bnf,sft(selection=best-of-n)"), "selection has no effect offline"),
        (dict(source="on-policy"), "On-policy samples are scored by a reward"),
        (dict(source="on-policy", reward="lenght"), "Unknown reward"),
        (dict(data=None, problem="r1", model="x"), "model has no effect on a lab problem"),
        (dict(data=None, problem="r1", budget=BudgetOptions(minutes=1.0)), "A lab problem counts steps"),
        (dict(data=None, problem="r1", objectives="bnf,hypo"), "The laboratory does not run hypo"),
        (dict(data=None, problem="r0"), "r0"),
    ],
)
def test_mistakes_are_told_at_once(wrong, wanted):
    assert wanted in refusal(CompareConfig, **{**GOOD, **wrong})


def test_two_budgets_are_one_too_many(capsys, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    words = ["--data", data, "--objectives", "bnf,dpo", "--output", tmp_path / "x"]
    _, err = told(capsys, *words, "--steps", 8, "--minutes", 1, code=2)
    assert "A budget is counted in one unit" in err and "steps and minutes" in err and err.count("\n") == 1


def test_budgets_and_evaluations_of_a_run():
    """Shares are rounded down; tuning is measured at its end, a run that counts about four times on the way."""
    from preftune.race.halving import Trial

    config = CompareConfig(**{**GOOD, "budget": BudgetOptions(steps=63), "save_every": 5})
    bnf, _ = config.contenders()
    tuning = config.train_settings(bnf, Trial(method="bnf", rate=3e-7, share=0.25, seed=999), "run")
    assert (tuning.max_steps, tuning.seed, tuning.optim.learning_rate, tuning.save_every) == (
        15,
        999,
        3e-7,
        5,
    )
    assert tuning.eval_every is not None and tuning.eval_every > 63
    full = config.train_settings(bnf, Trial(method="bnf", rate=3e-7, share=1.0, seed=1000), "run")
    assert (full.max_steps, full.eval_every) == (63, 15)
    assert config.race().rates == (3e-7, 1e-6, 3e-6, 1e-5)
    minutes = CompareConfig(**{**GOOD, "budget": BudgetOptions(minutes=8.0)})
    assert (
        minutes.train_settings(bnf, Trial(method="bnf", rate=1e-6, share=0.25, seed=999), "run").max_minutes
        == 2.0
    )


DOCS = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    preftune compare (.*)$", DOCS, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_docs_are_settings(command):
    settings = parse_settings(CompareConfig, shlex.split(command), prog="preftune compare", description="")
    assert len(settings.contenders()) == 4 and len(COMMANDS) == 3
