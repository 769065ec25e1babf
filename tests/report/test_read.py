import json
import math

import pytest

from preftune.errors import ConfigError, StorageError
from preftune.report.read import read_run

from .runs import build_run, write_lines


@pytest.fixture
def folder(tmp_path):
    return build_run(tmp_path / "run", steps=16, num_prompts=3)


def append(path, text):
    path.write_text(path.read_text() + text)


def test_a_finished_run_is_read_whole(folder):
    run = read_run(folder)
    assert run.name == "run"
    assert run.state == "finished"
    assert run.config["objective"] == {"name": "bnf"}
    assert "environment" not in run.config
    assert run.environment["device"] == "cpu"
    assert run.train["loss"].steps == tuple(range(1, 17))
    assert run.evaluation["rewards/margins"].steps == (0, 8, 16)
    assert "entropy" not in run.train  # logged as null
    assert run.last_step == 16
    assert len(run.samples) == 3 * 2 * 2
    assert [(s.prompt_index, s.sample_index, s.stage) for s in run.samples[:3]] == [
        (0, 0, "before"),
        (0, 0, "after"),
        (0, 1, "before"),
    ]
    assert len(run.data_lines) == 2
    assert run.has_final
    assert run.notes == ()


def test_a_cut_last_line_is_left_out_without_a_word(folder):
    whole = read_run(folder)
    append(folder / "metrics.jsonl", '{"step": 17, "phase": "train", "lo')
    append(folder / "samples.jsonl", '{"stage": "after", "prompt": "caf')
    assert read_run(folder) == whole


def test_a_broken_line_in_the_middle_is_noted(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = '{"step": 4, "pha'
    lines[9] = "[1, 2]"
    path.write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    assert run.notes == ("metrics.jsonl: line 5 (and 1 more) is not a JSON object and was skipped.",)
    assert 4 not in run.train["loss"].steps
    assert 5 in run.train["loss"].steps


def test_only_a_configuration_yet(folder):
    for name in ("metrics.jsonl", "samples.jsonl", "data_report.json", "status.json"):
        (folder / name).unlink()
    (folder / "final").rmdir()
    run = read_run(folder)
    assert (run.train, run.evaluation, run.samples, run.data_lines) == ({}, {}, (), ())
    assert (run.state, run.last_step, run.has_final) == ("running", 0, False)


def test_steps_logged_again_after_a_resume_stand_last(folder):
    append(folder / "metrics.jsonl", '{"step": 3, "phase": "train", "loss": 9.5}\n')
    series = read_run(folder).train["loss"]
    assert series.steps == tuple(range(1, 17))
    assert series.values[2] == 9.5


def test_values_that_are_no_numbers(folder):
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "step": 1,
                "phase": "train",
                "loss": math.nan,
                "a": True,
                "b": "text",
                "c": 10**400,
                "d": None,
                "e": [1],
            },
            {"step": "two", "phase": "train", "loss": 1.0},
            {"step": 2, "phase": "valid", "loss": 1.0},
        ],
    )
    run = read_run(folder)
    assert set(run.train) == {"loss", "c"}
    assert math.isnan(run.train["loss"].last)
    assert run.train["c"].last == math.inf
    assert run.notes == ("metrics.jsonl: 2 lines without step or phase were skipped.",)


def test_samples_with_faults(folder):
    good = {
        "stage": "after",
        "step": 1,
        "prompt_index": 0,
        "sample_index": 0,
        "prompt": "p",
        "completion": "line\u2028two",
        "reward": math.nan,
        "ended": True,
        "num_tokens": 2,
    }
    text = "".join(
        json.dumps(row, ensure_ascii=False) + "\n"
        for row in (
            good,
            {**good, "sample_index": 1, "reward": None},
            {**good, "stage": "during"},
            {**good, "prompt_index": None},
        )
    )
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    run = read_run(folder)
    assert [s.reward for s in run.samples] == [None, None]
    assert run.samples[0].completion == "line\u2028two"
    assert run.notes == ("samples.jsonl: 2 lines lack a field and were skipped.",)


def test_bytes_that_are_no_text_do_not_stop_the_report(folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"\x00\x00\xff\xfe\n")
    assert read_run(folder).last_step == 16


def test_status_and_data_report_of_another_shape(folder):
    (folder / "status.json").write_text('{"state": "on holiday"}')
    (folder / "data_report.json").write_text("[]")
    run = read_run(folder)
    assert run.state == "running"
    assert run.notes == ("data_report.json is not a JSON object and was skipped.",)


def test_what_is_no_run_folder_is_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match="no such run folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no such run folder"):
        read_run(folder / "config.yaml")
    with pytest.raises(ConfigError, match="not a run folder"):
        read_run(folder / "final")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", ""])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(StorageError, match=r"config\.yaml"):
        read_run(folder)
