"""Trackers get the numbers of metrics.jsonl through their own libraries, offline; a resumed run continues theirs."""

import json
import os
import signal
from pathlib import Path

import pytest

from preftune.errors import ConfigError
from preftune.train.loop import resume, train
from preftune.train.trackers import TRACKERS
from tests.folders import tiny_config

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the libraries
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def start(tiny_folder, pairs_file, tmp_path, monkeypatch):
    """A function of a tracker's name: the run, interrupted after its second step and resumed; its rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def started(name):
        pytest.importorskip(TRACKERS[name][0])
        folder = tmp_path / "run"
        config = tiny_config(tiny_folder, pairs_file, folder, report_to=[name], max_steps=4, batch_size=2)
        interrupt = lambda row: row["step"] == 2 and os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        assert train(config, quiet=True, on_step=interrupt).state == "interrupted"
        ids = json.loads((folder / "trackers.json").read_text())
        assert resume(config, quiet=True).state == "finished"
        assert json.loads((folder / "trackers.json").read_text()) == ids
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
        assert list(losses) == [1, 2, 3, 4]
        return folder, ids[name], losses

    return started


def test_tensorboard(start):
    folder, _, losses = start("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {one.step: one.value for one in events.Scalars("loss")} == pytest.approx(losses)
    assert events.Scalars("eval_loss")[0].step == 0


def test_mlflow(start):
    _, run_id, losses = start("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    history = client.get_metric_history(run_id, "loss")
    assert {one.step: one.value for one in history} == pytest.approx(losses)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["batch_size"] == "2"


def test_wandb_writes_one_run_offline(start):
    folder, run_id, _ = start("wandb")
    files = [path.name for path in (folder / "wandb").glob("offline-run-*/*.wandb")]
    assert len(files) == 2 and all(name == f"run-{run_id}.wandb" for name in files)


def test_trackio(start):
    _, name, losses = start("trackio")
    import sqlite3

    [file] = Path("trackio").glob("*.db")
    stored = (
        sqlite3.connect(file)
        .execute("SELECT step, metrics FROM metrics WHERE run_name = ?", (name,))
        .fetchall()
    )
    found = {step: numbers["loss"] for step, text in stored if "loss" in (numbers := json.loads(text))}
    assert found == pytest.approx(losses)


def test_a_tracker_that_fails_is_reported_and_the_run_continues(
    tiny_folder, pairs_file, tmp_path, capsys, monkeypatch
):
    """MLflow with a store of a kind that does not exist."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://nowhere")
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", report_to=["mlflow"], max_steps=1)
    assert train(config).state == "finished"
    out = capsys.readouterr()
    assert (out.out + out.err).count("mlflow could not start") == 1


@pytest.mark.parametrize(
    ("names", "told"),
    [(["wnadb"], "Unknown tracker"), (["tensorboard", "tensorboard"], "twice|pip install tensorboard")],
)
def test_refusals(names, told):
    with pytest.raises(ConfigError, match=told):
        tiny_config("m", "d", "o", report_to=names)


def test_none_is_what_other_tools_write():
    assert tiny_config("m", "d", "o", report_to=["none"]).report_to == []
