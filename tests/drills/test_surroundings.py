"""Signals in every phase, a second process, a full disk, few descriptors, links, removed outputs: one sentence each,
and nothing lost.
"""

import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from preftune.train.loop import train
from tests.drills.conftest import one_sentence
from tests.folders import metric_rows, same_bits, timeless, tiny_config, weights_of, write_rows

TRAIN = "--objective dpo --batch_size 4 --learning_rate 1e-3 --eval_fraction 0.25 --epochs 12"
COUNT = 6 if os.environ.get("DRILLS") else 1


@pytest.fixture(scope="module")
def train_words(tiny_folder, pairs_file):
    return ["train", "--model", str(tiny_folder), "--data", pairs_file, *TRAIN.split(), "--output"]


@pytest.fixture(scope="module")
def whole(train_words, forks, tmp_path_factory):
    """(the weights of the whole run, its seconds)"""
    run, begun = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    command = forks.run([*train_words, run])
    assert command.status == 0, command.said
    return weights_of(run / "final"), time.monotonic() - begun


def state_of(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_signals_at_any_time_lose_nothing(number, times, train_words, whole, forks, tmp_path, chance):
    """Once, and twice as a scheduler sends them to a process group and its launcher."""
    weights, seconds = whole
    for count in range(COUNT):
        run = tmp_path / f"run-{count}"
        command = forks.start([*train_words, run])
        time.sleep(chance.uniform(0, seconds))
        for _ in range(times):
            command.send(number)
            time.sleep(0.05)
        status = command.wait()
        assert status in (0, 130) and "Traceback" not in command.said, command.said
        if status == 130 and not (run / "config.yaml").exists():  # before the run began
            assert not run.exists() or not list(run.iterdir())
            continue
        if status == 130:
            assert state_of(run) == "interrupted" and list((run / "checkpoints").glob("step-*"))
            again = forks.run(["train", "--resume", run])
            assert again.status == 0, again.said
        assert state_of(run) == "finished" and same_bits(weights_of(run / "final"), weights)


def test_a_signal_that_is_ignored_stays_ignored(train_words, whole, forks, tmp_path):
    """As under nohup."""
    command = forks.start([*train_words, tmp_path / "run"], ignored=["SIGHUP"])
    for _ in range(4):
        time.sleep(whole[1] / 8)
        command.send(signal.SIGHUP)
    assert command.wait() == 0 and same_bits(weights_of(tmp_path / "run" / "final"), whole[0])


def test_a_second_process_on_a_run_is_refused(train_words, forks, tmp_path):
    run = tmp_path / "run"
    first = forks.start([*train_words, run])
    while not (run / ".lock").exists() or not (run / ".lock").read_text():
        time.sleep(0.01)
    second = forks.run([*train_words, run])
    assert second.status in (2, 4) and one_sentence(second), second.said
    while not (run / "config.yaml").exists():
        time.sleep(0.01)
    third = forks.run(["train", "--resume", run])
    assert third.status == 4 and one_sentence(third), third.said
    assert f"Another process is working on {run}; got process {first.process} on " in third.said
    assert first.wait() == 0, first.said


@pytest.mark.parametrize("verb", ["sample", "reward", "select"])
def test_an_output_is_never_replaced_unasked(verb, tiny_folder, forks, tmp_path):
    rows = [{"prompt": "Say tea.", "completions": ["e", "ee"], "rewards": [0.0, 1.0], "answer": "\ud800"}]
    data, output = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    output.write_text("precious")
    words = {
        "sample": ["sample", "--model", tiny_folder, "--prompts", data, "--max_new_tokens", "3"],
        "reward": ["reward", data, "--reward", "regex(pattern=e)", "--column", "brief"],
        "select": ["select", data, "--selection", "best-vs-worst"],
    }[verb] + ["--output", output]
    refused = forks.run(words)
    assert refused.status == 2 and one_sentence(refused) and output.read_text() == "precious"
    full = forks.run([*words, "--overwrite"], limits={"RLIMIT_FSIZE": 20})
    assert full.status == 4 and output.read_text() == "precious", full.said
    done = forks.run([*words, "--overwrite"])
    assert done.status == 0 and '"answer": "\\ud800"' in output.read_text(), done.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


@pytest.mark.parametrize("size", [400, 3_000, 30_000, 120_000])
def test_a_full_disk_is_one_sentence(size, train_words, whole, forks, tmp_path):
    """Files of at most so many bytes, as on a disk that fills up in another phase of the run each time."""
    run = tmp_path / "run"
    full = forks.run(
        [*train_words, run, "--save_every", "2"],
        limits={"RLIMIT_FSIZE": size},
        PREFTUNE_CACHE=str(tmp_path / "c"),
    )
    assert full.status == 4 and one_sentence(full), full.said
    if (run / "config.yaml").exists():
        assert state_of(run) == "failed"
        again = forks.run(["train", "--resume", run])
    else:
        again = forks.run([*train_words, run, "--save_every", "2"])
    assert again.status == 0, again.said
    assert same_bits(weights_of(run / "final"), whole[0])


@pytest.mark.parametrize("files", [12, 14, 17, 20])
def test_few_descriptors_are_one_sentence(files, train_words, whole, forks, tmp_path):
    command = forks.run([*train_words, tmp_path / "run"], limits={"RLIMIT_NOFILE": files})
    assert command.status == 0 or ("Traceback" not in command.said and one_sentence(command)), command.said
    assert "damaged" not in command.said and "Delete" not in command.said


def test_an_output_that_is_removed_is_one_sentence(train_words, forks, tmp_path):
    run = tmp_path / "run"
    command = forks.start([*train_words, run])
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    shutil.rmtree(run)
    assert command.wait() == 4 and one_sentence(command), command.said
    assert "No such file" in command.said


def test_what_a_kill_left_of_the_first_file_does_not_hold_up_the_same_command(train_words, forks, tmp_path):
    """SIGKILL while config.yaml is written: its temporary file is all there is."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.123-0123abcd.tmp.yaml").write_text("objective:")
    command = forks.run([*train_words, run, "--max_steps", "1"])
    assert command.status == 0, command.said
    assert not list(run.glob(".config*"))


def test_a_clock_that_jumps_changes_nothing(tiny_folder, pairs_file, tmp_path, monkeypatch):
    """The system's clock goes back and forth by years: durations come of a clock that does not."""
    whole = train(tiny_config(tiny_folder, pairs_file, tmp_path / "whole"), quiet=True).folder
    jumps, now = itertools.cycle([0.0, -1e9, 1e9, 3600.0, -7200.0]), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    run = train(tiny_config(tiny_folder, pairs_file, tmp_path / "run", max_minutes=10.0), quiet=True).folder
    assert same_bits(weights_of(run / "final"), weights_of(whole / "final"))
    rows = metric_rows(run)
    assert timeless(rows) == timeless(metric_rows(whole))
    assert all(0 < row["step_time"] < 60 for row in rows if "step_time" in row)


def test_a_link_in_a_run_folder_is_removed_and_what_it_leads_to_is_kept(train_words, forks, tmp_path):
    """`iterate` starts a round's run again that has no checkpoint."""
    from preftune.train.runlog import forget_run

    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
    forget_run(run)
    assert not list(run.iterdir()) and (tmp_path / "kept" / "file").read_text() == "precious"
