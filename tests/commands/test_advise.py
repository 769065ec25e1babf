"""The verb advise: from a file and from a problem, for people and for programs, and what it refuses."""

import json

import pytest

from preftune.cli.main import main
from tests.folders import PAIRS, write_rows


@pytest.fixture
def diagnosis(tmp_path):
    path = tmp_path / "diagnosis.json"
    path.write_text(
        json.dumps({"evidence": {"num_pairs": 500, "noise": 0.25, "can_reward": True}, "findings": []})
    )
    return str(path)


def out(capsys, *words: str) -> str:
    assert main(["advise", *words]) == 0
    return capsys.readouterr().out


def test_for_people(diagnosis, capsys):
    text = out(capsys, diagnosis)
    assert text.startswith("Source of completions\n  1. offline\n")
    assert "measured: num_pairs 500, noise 0.25" in text and "rests on: E4, E6" in text
    assert "Unknown; the advice would be better with: can_sample." in text
    assert all(len(line) <= 140 for line in text.splitlines())
    assert "  1. on-policy  new_samples_per_step 30\n" in out(
        capsys, diagnosis, "--can_sample", "true", "--samples", "900", "--steps", "30"
    )


def test_settings_of_an_objective_are_flags(tmp_path, capsys):
    path = tmp_path / "noisy.json"
    path.write_text('{"num_pairs": 500, "noise": 0.25}')
    assert "  1. robust-dpo  --objective.label_smoothing 0.25\n" in out(capsys, str(path))


def test_for_programs_and_the_user_s_answers_win(diagnosis, capsys):
    words = (
        "--can_sample",
        "true",
        "--samples",
        "900",
        "--steps",
        "30",
        "--can_hold_reference",
        "false",
        "--json",
    )
    found = json.loads(out(capsys, diagnosis, *words))
    assert found["advice"]["source"][0]["choice"] == "on-policy"
    assert found["advice"]["objective"][0]["choice"] == "reinforce"
    assert found["evidence"]["samples"] == 900 and found["evidence"]["num_pairs"] == 500
    found = json.loads(out(capsys, diagnosis, *words, "--can_reward", "false"))
    assert found["advice"]["source"][0]["choice"] == "offline" and found["evidence"]["can_reward"] is False
    assert found["advice"]["objective"][0]["choice"] == "simpo"


def test_keep_length_takes_effect(tmp_path, capsys):
    path = tmp_path / "long.json"
    path.write_text('{"num_pairs": 500, "length_bias": 0.8}')
    assert "  1. dpo" in out(capsys, str(path)) and "  1. ln-dpo" in out(
        capsys, str(path), "--keep_length", "true"
    )


def test_a_problem_of_the_laboratory_is_measured_from_samples(capsys):
    found = json.loads(
        out(
            capsys,
            "--problem",
            "length_min",
            "--can_sample",
            "true",
            "--samples",
            "500",
            "--seed",
            "1",
            "--json",
        )
    )
    assert found["evidence"]["completion_tokens"] > 2 and found["evidence"]["can_reward"] is True
    assert found["advice"]["source"][0]["choice"] == "on-policy"
    other = json.loads(out(capsys, "--problem", "length_min", "--json"))
    assert other["evidence"]["completion_tokens"] != found["evidence"]["completion_tokens"]
    blind = json.loads(out(capsys, "--problem", "length_min", "--can_reward", "false", "--json"))
    assert blind["evidence"]["best_of_data"] is None and blind["evidence"]["can_reward"] is False


def test_what_is_refused_is_one_sentence(diagnosis, tmp_path, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    deep, long = tmp_path / "deep.json", tmp_path / "long.json"
    deep.write_text("[" * 100_000)
    long.write_text('{"noise": ' + "9" * 5000 + "}")
    unknown = tmp_path / "unknown.json"
    unknown.write_text('{"nois": 0.1}')
    for words, wanted in (
        ([], "Advice needs a diagnosis or a problem"),
        ([diagnosis, "--problem", "r1"], "Advice needs a diagnosis or a problem; got both"),
        (["/nowhere.json"], "Cannot read the diagnosis /nowhere.json"),
        ([str(tmp_path)], "Cannot read the diagnosis"),
        ([str(broken)], "is not valid JSON"),
        ([str(deep)], "is not valid JSON"),
        ([str(long)], "is not valid JSON"),
        ([str(unknown)], "Did you mean noise?"),
        ([diagnosis, "--samples", "-1"], "samples is out of range; got -1; expected at least 0"),
        ([diagnosis, "--steps", "-1"], "steps is out of range; got -1; expected at least 0"),
        ([diagnosis, "--seed", "1"], "seed cannot be used"),
        (["--problem", "nothing"], "There is no such problem"),
    ):
        assert main(["advise", *words]) == 2, words
        err = capsys.readouterr().err
        assert wanted in err and err.count("\n") == 1 and "Traceback" not in err, err


def test_control_characters_reach_no_terminal(tmp_path, capsys):
    path = tmp_path / "evil.json"
    path.write_text('{"\\u001b[31m": 1}')
    assert main(["advise", str(path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["r2", "tokens", "length_skew"])
def test_every_kind_of_problem_gets_advice(problem, capsys):
    assert json.loads(out(capsys, "--problem", problem, "--json"))["evidence"]["off_policy"] is not None


def test_a_pilot_race_decides(capsys, tmp_path):
    race = ["--race.output", str(tmp_path / "pilot"), "--race.steps", "8", "--race.rates", "[0.1]"]
    before = json.loads(out(capsys, "--problem", "overlap", "--json"))["advice"]["objective"]
    after = json.loads(out(capsys, "--problem", "overlap", "--json", *race))["advice"]["objective"]
    comparison = json.loads((tmp_path / "pilot" / "comparison.json").read_text())
    assert [one["choice"] for one in after[:3]] == [
        row["method"].partition("(")[0] for row in comparison["places"]
    ]
    assert {before[0]["choice"]} <= {one["choice"] for one in after[:3]}
    assert (
        after[0]["reason"].startswith("Ended the pilot comparison at")
        and "the pilot comparison in" in after[0]["basis"]
    )


def test_a_pilot_race_on_a_language_model(diagnosis, tiny_folder, capsys, tmp_path):
    data = write_rows(
        tmp_path / "many.jsonl",
        [{**row, "prompt": f"{row['prompt']} {k}"} for k in range(3) for row in PAIRS],
    )
    text = out(
        capsys,
        diagnosis,
        "--race.output",
        str(tmp_path / "pilot"),
        "--race.data",
        data,
        "--race.model",
        str(tiny_folder),
        "--race.rows",
        "12",
        "--race.steps",
        "1",
        "--race.seeds",
        "2",
        "--race.methods",
        "2",
        "--race.rates",
        "[1e-3]",
    )
    assert (
        text.count("Ended the pilot comparison at") == 2 and (tmp_path / "pilot" / "comparison.html").exists()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--race.steps", "4"], "A pilot comparison writes its runs to a folder"),
        (["--race.output", "x"], "Add --race.data FILE"),
        (["--race.output", "x", "--race.data", "d", "--race.seeds", "1"], "race.seeds is out of range"),
    ],
)
def test_a_pilot_race_that_cannot_be(diagnosis, words, message, capsys):
    assert main(["advise", diagnosis, *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
