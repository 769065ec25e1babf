"""A tiny model that has learned to call a calculator."""

import pytest

from preftune.objectives.sft import SFT
from preftune.train.loop import train
from tests.environments.calculator import QUESTIONS, TRAJECTORIES
from tests.folders import save_tiny_model, tiny_config, write_rows


@pytest.fixture(scope="session")
def calling_folder(tmp_path_factory):
    """The tiny model, trained until most of its rollouts call the calculator and repeat what it says."""
    folder = tmp_path_factory.mktemp("calculator")
    model = save_tiny_model(folder / "start")
    data = write_rows(folder / "trajectories.jsonl", TRAJECTORIES)
    settings = {"objective": SFT(), "batch_size": 6, "epochs": 99.0, "max_steps": 40, "eval_fraction": 0.0}
    run = train(
        tiny_config(model, data, folder / "run", optim={"learning_rate": 0.02}, **settings), quiet=True
    )
    return run.folder / "final"


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("questions") / "questions.jsonl", QUESTIONS)
