"""Settings files of older versions are read, those of newer ones are refused in a sentence."""

from pathlib import Path

import pytest
import yaml

from preftune.cli.main import main
from preftune.cli.settings import parse_settings
from preftune.objectives.dpo import DPO
from preftune.spec.schema import SCHEMA, STEPS
from preftune.train.options import TrainConfig
from preftune.train.runlog import create_run

OLD = Path(__file__).with_name("config_schema_0.yaml")
"""What a run of June 2026 wrote: it has a setting that is gone, and a value that is refused today."""


def read(path: Path) -> TrainConfig:
    return parse_settings(TrainConfig, ["--config", str(path)], "preftune train")


def test_every_version_has_a_step():
    assert len(STEPS) == SCHEMA


def test_an_old_run_is_read_with_a_line_for_each_change(capsys):
    config = read(OLD)
    assert (config.model, config.layout.micro_batch_tokens, config.collect.data_share) == ("m", 2048, None)
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in told] == [
        "layout.row_tokens is no longer a setting",
        "collect.data_share 0 is now null",
    ]


def test_a_run_states_its_version_and_reads_without_a_word(tmp_path, capsys):
    config = TrainConfig(model="m", data="d", output="o", objective=DPO(beta=0.5))
    create_run(str(tmp_path / "run"), config, {"python": "3"})
    path = tmp_path / "run" / "config.yaml"
    assert path.read_text().startswith(f"schema: {SCHEMA}\n")
    assert read(path) == config
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words", [["train", "--config", "{file}"], ["train", "--resume", "{run}"], ["report", "{run}"]]
)
def test_a_newer_version_is_refused(words, tmp_path, capsys):
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({"schema": SCHEMA + 1, "a_setting_of_tomorrow": 1}))
    assert main([word.format(file=file, run=file.parent) for word in words]) == 2
    told = capsys.readouterr().err
    assert f"written by a newer preftune; got schema {SCHEMA + 1}; expected at most schema {SCHEMA}" in told
    assert "Upgrade preftune" in told


@pytest.mark.parametrize("version", ["one", "-1", "true", "1.0"])
def test_a_version_that_is_none(version, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(f"schema: {version}\nmodel: m\n")
    assert main(["train", "--config", str(tmp_path / "a.yaml")]) == 2
    assert "Invalid value for schema" in capsys.readouterr().err
