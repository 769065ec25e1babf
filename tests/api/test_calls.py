"""The commands as functions of Python objects."""

import json

import matplotlib
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import preftune as pt
from preftune.errors import ConfigError
from preftune.train.loop import train
from tests.folders import PAIRS, tiny_config
from tests.fresh import run_fresh

matplotlib.use("agg")
ROWS = [{"prompt": f"q{i}", "chosen": "a b c", "rejected": "d"} for i in range(8)]


@pytest.fixture(scope="module")
def run(tiny_folder, pairs_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(tiny_folder, pairs_file, folder, max_steps=2), quiet=True)
    return folder


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_importing_the_package_imports_no_library():
    run_fresh("import sys, preftune; dir(preftune); assert 'torch' not in sys.modules")


def test_samples_are_rows_that_train(run, tiny_folder, tmp_path):
    rows = pt.sample(run, ["one", "two"], num_completions=2, max_new_tokens=4)
    assert [row["prompt"] for row in rows] == ["one", "two"]
    assert all(len(row["completions"]) == 2 for row in rows)
    again = pt.sample(str(run / "final"), ["one", "two"], num_completions=2, max_new_tokens=4)
    assert again == rows
    [single] = pt.sample(run, "one", max_new_tokens=4)
    assert single["prompt"] == "one"
    data = [{**row, "rewards": [1.0, 0.0]} for row in rows * 2]
    done = pt.train(
        str(tiny_folder),
        data,
        "rwr",
        output=tmp_path / "run",
        max_steps=1,
        batch_size=2,
        eval_fraction=0,
        quiet=True,
    )
    assert done.state == "finished"


def test_a_loaded_model_is_the_same_as_its_folder(tiny_folder):
    model, tokenizer = loaded(tiny_folder)
    kept = dict(max_new_tokens=4, seed=3)
    assert pt.sample(model, "hi", tokenizer=tokenizer, **kept) == pt.sample(str(tiny_folder), "hi", **kept)


def test_evaluation_of_pairs_is_that_of_the_command(run, capsys):
    from preftune.cli.main import main

    found = pt.evaluate(run, ROWS)
    assert list(found.metrics.columns) == ["quantity", "mean", "low", "high", "n"]
    file = run.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    capsys.readouterr()
    assert main(["eval", str(run / "final"), "--data", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intervals"] == found.content["intervals"]
    assert found.plot().axes and "rewards/margins" in found._repr_html_()


def test_evaluation_of_prompts_takes_a_function(run):
    def short(prompts, completions, **columns):
        return [-float(len(one)) for one in completions]

    found = pt.evaluate(run, prompts=["a", "b", "c"], reward=short, max_new_tokens=4)
    assert [row["quantity"] for row in found.rows] == ["reference", "model", "difference"]
    assert found.rows[2]["mean"] == pytest.approx(found.rows[1]["mean"] - found.rows[0]["mean"])


def test_diagnosis_of_rows_and_of_a_run(run, tmp_path):
    found = pt.diagnose(ROWS)
    assert {"name", "measured", "verdict", "meaning"} == set(
        found.metrics.columns
    ) and "8 rows" in found.summary
    told = pt.diagnose(run, output=str(tmp_path / "diagnosis"), samples=0)
    assert (tmp_path / "diagnosis" / "diagnosis.html").is_file() and told.page
    assert set(told.metrics["side"]) == {"chosen", "rejected"}


def test_a_comparison_continues(tiny_folder, tmp_path):
    given = dict(
        output=tmp_path / "race", model=str(tiny_folder), steps=2, rates=[1e-3], seeds=2, batch_size=2
    )
    found = pt.compare(PAIRS, ["dpo", "ipo"], eval_fraction=0.25, **given)
    assert set(found.metrics["method"]) == {"dpo", "ipo"} and found.summary
    assert found.plot().axes
    again = pt.compare(PAIRS, "dpo,ipo", eval_fraction=0.25, **given)
    assert again.rows == found.rows


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: pt.sample("nowhere", "hi"), "There is no model 'nowhere'"),
        (lambda: pt.sample("nowhere", "hi", temprature=1), "Did you mean --temperature"),
        (lambda: pt.evaluate("nowhere"), "preference data, prompts and tasks"),
        (lambda: pt.diagnose("nothing.csv"), "nothing.csv does not exist"),
        (lambda: pt.compare(ROWS, "dpo", output="x"), "budget"),
    ],
)
def test_mistakes_get_the_sentences_of_the_command_line(call, told):
    with pytest.raises((ConfigError, pt.PreftuneError), match=told):
        call()
