"""A resumed run is the same run, or it is refused by the name of what has changed."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from preftune.cli.main import main
from preftune.errors import ConfigError
from preftune.storage import unsealed
from preftune.train.identity import Identity, check_same_inputs
from preftune.train.loop import train
from preftune.train.processes import ALONE, Processes
from tests.folders import PAIRS, save_tiny_model, tiny_config, weights_of, write_rows


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder with model, data and a run that ends at step 3 of 6, with checkpoints of steps 1 to 3."""
    root = tmp_path_factory.mktemp("started")
    model = save_tiny_model(root / "model")
    data = write_rows(root / "pairs.jsonl", PAIRS)
    config = tiny_config(model, data, root / "run", save_every=1, keep_checkpoints=9)
    run = train(config, quiet=True).folder
    steps = sorted((run / "checkpoints").iterdir())
    for path in [run / "final", *steps[3:]]:
        shutil.rmtree(path)
    (run / "report.html").unlink()
    (run / "status.json").write_text(json.dumps({"state": "interrupted", "step": 3, "message": ""}))
    return root


@pytest.fixture
def root(started, tmp_path):
    """A copy of it, where something may be changed."""
    shutil.copytree(started, tmp_path / "root")
    path = tmp_path / "root" / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(started), str(tmp_path / "root")))
    return tmp_path / "root"


def rows_changed(root: Path, change) -> None:
    path = root / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, change(rows))


def settings_changed(root: Path, **values) -> None:
    path = root / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, value in values.items():
        section, _, leaf = name.rpartition("__")
        (config[section] if section else config)[leaf] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def template_changed(root: Path) -> None:
    path = root / "model" / "chat_template.jinja"
    path.write_text(path.read_text().replace("user", "USER") + "{# changed #}")


def swapped(rows):
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


CHANGES = {
    "a row edited": ("data", lambda root: rows_changed(root, lambda r: [{**r[0], "chosen": "Yes."}, *r[1:]])),
    "preferences swapped": ("data", lambda root: rows_changed(root, swapped)),
    "rows gone": ("data", lambda root: rows_changed(root, lambda rows: rows[:6])),
    "rows reordered": ("data", lambda root: rows_changed(root, lambda rows: rows[::-1])),
    "rows doubled": ("data", lambda root: rows_changed(root, lambda rows: rows * 2)),
    "template": ("template", template_changed),
    "weights": ("model", lambda root: save_tiny_model(root / "model", seed=1)),
    "learning rate": ("optim.learning_rate", lambda root: settings_changed(root, optim__learning_rate=2e-3)),
    "batch size": ("batch_size", lambda root: settings_changed(root, batch_size=3)),
    "beta": ("objective.beta", lambda root: settings_changed(root, objective__beta=0.2)),
    "seed": ("seed", lambda root: settings_changed(root, seed=7)),
    "epochs": ("epochs", lambda root: settings_changed(root, epochs=4.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_results_is_refused_by_name(change, root, capsys):
    name, make = CHANGES[change]
    make(root)
    before = {path: path.read_bytes() for path in (root / "run").rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(root / "run"), "--json"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was started with other" in error, error
    assert name in error and f"--allow-changed {name}" in error.replace("data,template", "template"), error
    assert before == {path: path.read_bytes() for path in (root / "run").rglob("*") if path.is_file()}


def test_an_allowed_change_is_recorded(root, capsys):
    settings_changed(root, optim__learning_rate=2e-3)
    words = ["train", "--resume", str(root / "run"), "--allow-changed", "optim.learning_rate"]
    assert main(words) == 0
    assert "optim.learning_rate has changed" in capsys.readouterr().err
    manifest = unsealed((root / "run" / "manifest.json").read_bytes())
    assert manifest["settings"]["optim.learning_rate"] == 2e-3
    [entry] = manifest["resumed"]
    assert (entry["step"], entry["allowed"]) == (3, ["optim.learning_rate"])
    assert entry["was"]["optim.learning_rate"] == 3e-3


@pytest.mark.parametrize("names", ["data", "nonsense", "settings"])
def test_an_allowance_without_a_change_is_refused(names, root, capsys):
    assert main(["train", "--resume", str(root / "run"), "--allow-changed", names, "--json"]) == 2
    assert f"--allow-changed {names} has no effect" in capsys.readouterr().err


def test_what_changes_rounding_alone_is_reported(root, capsys):
    settings_changed(root, layout__micro_batch_tokens=64, save_every=2)
    assert main(["train", "--resume", str(root / "run")]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "the last bits may differ" in error and "layout.micro_batch_tokens 64" in error


def test_a_moved_run_and_moved_inputs_are_the_same_run(root, tmp_path, capsys):
    moved = tmp_path / "moved"
    root.rename(moved)
    path = moved / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(root), str(moved)))
    assert main(["train", "--resume", str(moved / "run")]) == 0
    error = capsys.readouterr().err
    assert "may differ" not in error and "changed" not in error
    assert weights_of(moved / "run" / "final")


def test_a_run_of_an_older_version_resumes_with_a_note(root, capsys):
    (root / "run" / "manifest.json").unlink()
    assert main(["train", "--resume", str(root / "run")]) == 0
    assert "has no manifest.json" in capsys.readouterr().err.replace("\n", " ")
    assert (root / "run" / "manifest.json").is_file()


def test_an_end_before_the_checkpoint_is_refused(root, capsys):
    settings_changed(root, max_steps=2)
    words = ["train", "--resume", str(root / "run"), "--allow-changed", "max_steps", "--json"]
    assert main(words) == 2
    assert "The checkpoint is beyond the end of the run; got step 3, and 2 steps" in capsys.readouterr().err


def test_a_damaged_final_model_is_never_loaded_in_silence(root, capsys):
    assert main(["train", "--resume", str(root / "run")]) == 0
    final = root / "run" / "final"
    words = ["eval", str(root / "run"), "--data", str(root / "pairs.jsonl"), "--json"]
    assert main(words) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (final / name).read_bytes()
        (final / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        capsys.readouterr()
        assert main(words) == 2
        assert f"final is not as its run wrote it; got other content in {name}" in capsys.readouterr().err
        (final / name).write_bytes(whole)
    assert main(words) == 0


def test_processes_with_other_files_are_refused():
    class Two(Processes):
        def gather(self, mine):
            return [mine, {**mine, "data": "other"}]

    one = Identity(inputs={"data": "a", "model": "b"}, settings={}, environment={})
    with pytest.raises(ConfigError, match="Process 1 has other data than process 0"):
        check_same_inputs(one, Two(size=2))
    check_same_inputs(one, ALONE)
