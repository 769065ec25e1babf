"""`preftune.train(...)` with keywords, as the command line takes them, and with objects that Python has in hand."""

import shutil
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.cli.keywords import keyword_flags
from preftune.cli.words import prepared
from preftune.data.memory import source_name
from preftune.errors import ConfigError, StorageError, storage_error
from preftune.objectives import Objective
from preftune.rewards.resolve import register_reward
from preftune.train.device_settings import parse_training
from preftune.train.loop import OnStep, train
from preftune.train.result import RunResult

PASSED_MODEL = "start"
"""Suffix of the folder, beside the run folder, that holds a model which was passed as an object."""


def train_with(
    model: Any = None,
    data: Any = None,
    objective: str | Objective | None = None,
    *,
    output: str | PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    reward: Any = None,
    eval_data: Any = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> RunResult:
    """Train as `preftune train` does, with the same settings, checks and sentences.

    Args:
        model: a name, a folder, or a loaded model with its `tokenizer`; the bundled model if not given. A loaded
            model is written to OUTPUT.start first, so that the run can be resumed and compared.
        data: a file, a folder, a hub id, a list of rows, a pandas DataFrame, a `datasets.Dataset` or a generator.
        objective: a name, module:Class, or an objective with its hyperparameters.
        output: the run folder.
        tokenizer: of a loaded model.
        reward: a built-in reward by name, or a function f(prompts, completions, **columns).
        eval_data: held-out data, in any form that `data` has.
        on_step: called after every step with the metrics of the step, read-only; a true value ends the run.
        quiet: print nothing.
        overwrite: delete an earlier run of this name first.
        settings: every setting of `preftune train` by its short name (learning_rate=1e-6), its full name with
            `__` for `.` (rows__max_length=512), or a section as a mapping (lora={"rank": 8}); lora=8 is the rank.
    """
    folder = Path(output)
    if overwrite:
        _delete_run(folder)
    given: dict[str, Any] = {"output": str(folder)}
    if data is None:
        raise ConfigError("train needs data", got="none", expected="a file, rows, a DataFrame or a data set")
    sources = {"data": data} | ({} if eval_data is None else {"eval_data": eval_data})
    named = {name: one if isinstance(one, str) else source_name(one) for name, one in sources.items()}
    given |= dict.fromkeys(
        named, "in-memory"
    )  # the real names, which YAML would read as mappings, follow below
    if isinstance(objective, str):
        given["objective"] = objective
    if reward is not None:
        given["reward"] = reward if isinstance(reward, str) else register_reward(reward)
        settings.setdefault("source", "on-policy")
    if model is not None:
        given["model"] = model_name(model, tokenizer, folder)
    elif tokenizer is not None:
        raise ConfigError("tokenizer belongs to a loaded model", got="no model", do="Pass model=, too")
    words = prepared("train", keyword_flags({**given, **settings}))
    config = parse_training(words, "preftune.train")
    config = replace(config, **named)
    if objective is not None and not isinstance(objective, str):
        config = replace(config, objective=objective)
    return train(config, quiet=quiet, on_step=on_step)


def model_name(model: Any, tokenizer: PreTrainedTokenizerBase | None, output: Path) -> str:
    """The name of a model that a program passed; a loaded model is written to OUTPUT.start."""
    if isinstance(model, str | PathLike):
        if tokenizer is not None:
            raise ConfigError("tokenizer belongs to a loaded model", got=f"model {model}", do="Leave it out")
        return str(model)
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            "model is no model", got=type(model).__name__, expected="a name, a folder or a transformers model"
        )
    if tokenizer is None:
        raise ConfigError("A loaded model needs its tokenizer", got="none", do="Pass tokenizer=")
    folder = output.with_name(f"{output.name}.{PASSED_MODEL}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise storage_error("write the model that was passed", folder, error) from error
    return str(folder)


def _delete_run(folder: Path) -> None:
    if not folder.exists():
        return
    if not (folder / "config.yaml").is_file():
        raise StorageError(
            f"{folder} is not a run folder", got="no config.yaml in it", do="Name another output"
        )
    shutil.rmtree(folder)
