"""`import preftune` offers the names that users need, and loads nothing for them before they are used."""

import importlib

import pytest

import preftune
from tests.folders import tiny_config
from tests.fresh import run_fresh


def test_import_is_light():
    code = (
        "import sys, preftune\n"
        "assert preftune.__all__ and 'TrainConfig' in dir(preftune)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'rich', 'preftune.train'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run_fresh(code)


def test_every_public_name_can_be_imported():
    assert all(getattr(preftune, name) is not None for name in preftune.__all__)


@pytest.mark.parametrize("name", preftune._MODULES)
def test_every_name_is_what_its_module_defines(name):
    thing = getattr(preftune, name)
    module = importlib.import_module(f"preftune.{preftune._MODULES[name]}")
    assert thing is getattr(module, name)


def test_train_is_a_function_and_a_package(tiny_folder, pairs_file, tmp_path):
    """Also once its modules are imported, which puts the package into this place."""
    from preftune.train import loop

    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", max_steps=1)
    assert preftune.train(config, quiet=True).state == "finished" and preftune.train.loop is loop
    assert preftune.read_run(tmp_path / "run").last_step == 1


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'rain'"):
        preftune.rain  # noqa: B018
