"""`preftune start`: from a data file to one page with a verdict, within a time budget."""

import json
import shlex

import pytest

from preftune.cli.main import main
from preftune.commands.eval import PairEvaluation
from preftune.commands.start import Pace, RacePlan, plan_start, verdict
from preftune.stats import share_interval
from tests.folders import write_rows

HOSTILE = "<script>document.title='broken'</script>"


@pytest.mark.parametrize(
    ("seconds", "plan"),
    [
        # 3 methods with 2 rates: 12 runs; (1200 / 12 - 10) / 1 = 90 steps, of which 50 are an epoch
        (1200, RacePlan(methods=3, rates=2, steps=50, seeds=2)),
        # 12 runs: (240 / 12 - 10) / 1 = 10 steps
        (240, RacePlan(methods=3, rates=2, steps=10, seeds=2)),
        # 12 runs: 2 steps are too few; one rate makes 6 runs: (144 / 6 - 10) / 1 = 14 steps
        (144, RacePlan(methods=3, rates=1, steps=14, seeds=2)),
        # 6 runs: 6 steps are too few; two methods make 4 runs: (96 / 4 - 10) / 1 = 14 steps
        (96, RacePlan(methods=2, rates=1, steps=14, seeds=2)),
        # nothing fits: the least race
        (10, RacePlan(methods=2, rates=1, steps=4, seeds=2)),
    ],
)
def test_the_largest_race_that_fits(seconds, plan):
    assert plan_start(Pace(step=1.0, overhead=10.0), float(seconds), methods=3, most_steps=50) == plan


def test_the_time_of_a_race():
    pace = Pace(step=1.0, overhead=10.0)
    assert RacePlan(methods=3, rates=2, steps=50, seeds=2).seconds(pace) == 720
    assert RacePlan(methods=2, rates=1, steps=4, seeds=2).seconds(pace) == 56


@pytest.mark.parametrize(
    ("right", "wrong", "told"), [(40, 2, "training works"), (2, 40, "moved away"), (11, 9, "not told apart")]
)
def test_the_verdict_says_how_sure_it_is(right, wrong, told):
    share = share_interval([1.0] * right + [0.0] * wrong)
    found = PairEvaluation(
        num_pairs=right + wrong, beta=0.1, beta_of_run=True, intervals={"rewards/accuracies": share}
    )
    assert told in verdict(found) and f"of {right + wrong} held-out pairs" in verdict(found)


def test_from_a_file_to_a_page(tiny_folder, tmp_path, capsys):
    rows = [
        {"prompt": f"{HOSTILE} {i}", "good": f"a good answer {i}", "bad": f"no {7 * i}"} for i in range(40)
    ]
    data, output = write_rows(tmp_path / "pairs.jsonl", rows), tmp_path / "start"
    words = ["start", data, "--model", tiny_folder, "--output", output, "--minutes", "0.1", "--methods", "2"]
    words += ["--race_rows", "20", "--questions", "2", "--learning_rate", "1e-3", "--batch_size", "4"]
    words += ["--rows.columns", "chosen=good,rejected=bad"]
    assert main(list(map(str, words))) == 0
    told = capsys.readouterr().out
    content = json.loads((output / "start.json").read_text())
    page = (output / "start.html").read_text()
    assert content["verdict"] in told and "preftune chat" in told
    assert (output / "run" / "final" / "config.json").is_file() and (
        output / "race" / "comparison.html"
    ).is_file()
    assert len(content["race"]["places"]) == 2 and content["run"]["objective"] in told + page
    assert len(content["answers"]) == 2 and all({"before", "after"} < set(one) for one in content["answers"])
    assert content["answers"][0]["prompt"].startswith("<script>") and HOSTILE not in page
    assert content["evaluation"]["num_pairs"] == 4
    again = next(line for line in content["next"] if " train " in line)
    assert main([*shlex.split(again)[1:-1], str(tmp_path / "longer"), "--max_steps", "1"]) == 0


def test_data_without_pairs_are_refused_with_what_to_use(tmp_path, capsys):
    data = write_rows(tmp_path / "labels.jsonl", [{"prompt": "a", "completion": "b", "label": True}] * 20)
    assert main(["start", str(data), "--output", str(tmp_path / "o")]) == 2
    assert "preftune train --objective bnf" in capsys.readouterr().err
