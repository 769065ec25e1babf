"""What each verb does: settings in, work done by the rooms, results printed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from preftune.cli.checks import resumed_folder
from preftune.cli.output import print_json
from preftune.cli.settings import settings_from_run
from preftune.errors import ConfigError
from preftune.model.device_defaults import expand_segments
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.terminal import clean_terminal
from preftune.train.device_settings import parse_training
from preftune.train.dry_run import Forecast, dry_run
from preftune.train.loop import resume, train
from preftune.train.options import TrainConfig
from preftune.train.processes import together
from preftune.train.result import RunResult


def run(arguments: Sequence[str]) -> int:
    """`train`: a new run, or `--resume RUN` to resume one; under torchrun by all of its processes
    together.
    """
    quiet_transformers()
    expand_segments()
    as_json, rehearses = "--json" in arguments, not {"--dry-run", "--dry_run"}.isdisjoint(arguments)
    words = [word for word in arguments if word not in ("--json", "--dry-run", "--dry_run")]
    words, options = _resume_options(words)
    folder = resumed_folder([*words, *(["--dry-run"] if rehearses else [])], "train")
    if folder is not None:
        if not (Path(folder) / "config.yaml").is_file():
            raise ConfigError(
                f"{folder} is not a run folder", got="no config.yaml in it", expected="what --output made"
            )
        settings = replace(
            settings_from_run(TrainConfig, Path(folder)), output=folder
        )  # the folder may have moved
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if settings.objective.trains == "reward model" and alone:
            return _resume_reward_model(folder, options, as_json)
        start = partial(resume, **options)
    else:
        if rehearses and not any(word.partition("=")[0] == "--output" for word in words):
            words = [*words, "--output", "runs/dry-run"]  # a dry run writes nothing
        settings = parse_training(words, "preftune train")
        start = resume if _begun(settings.output) == settings else train
    with together(settings.process_minutes) as processes:
        if rehearses:
            forecast = dry_run(settings, Reporter(quiet=as_json), processes)
            return _print_forecast(forecast, as_json)
        result = start(settings, quiet=as_json, processes=processes)
        if processes.is_main:
            _tell_run(result, as_json, writes=settings.objective.trains == "policy")
    return 0 if result.state == "finished" else 130


def _resume_reward_model(folder: str, options: Mapping[str, Any], as_json: bool) -> int:
    """A run of `train-reward-model`, which ends with an evaluation of the reward model."""
    from preftune.commands.train_reward_model import resume_reward_model, tell_reward_model

    return tell_reward_model(*resume_reward_model(folder, quiet=as_json, **options), as_json)


def _resume_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(the other words, what is after `--resume RUN`: --allow-changed NAME,NAME and --skip-damaged)"""
    words: list[str] = []
    options: dict[str, Any] = {}
    rest = list(arguments)
    resumes = bool(rest) and rest[0].partition("=")[0] == "--resume"
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if resumes and name == "--allow-changed":
            value = value if equals else rest.pop(0) if rest else ""
            options["allowed"] = frozenset(part.strip() for part in value.split(",") if part.strip())
            if not options["allowed"]:
                raise ConfigError(
                    "--allow-changed names nothing",
                    got=word,
                    expected="--allow-changed data,optim.learning_rate",
                )
        elif resumes and word.replace("_", "-") == "--skip-damaged":
            options["skip_damaged"] = True
        else:
            words.append(word)
    return words, options


def _begun(output: str) -> TrainConfig | None:
    """The settings of the run in this folder if torchrun starts all processes again after it lost one."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if not again or not (Path(output) / "config.yaml").is_file():
        return None
    return replace(settings_from_run(TrainConfig, Path(output)), output=output)


def _print_forecast(forecast: Forecast, as_json: bool) -> int:
    if as_json:
        print_json(asdict(forecast))
    else:
        print(clean_terminal("\n".join(forecast.lines())))
    return 0


def _tell_run(result: RunResult, as_json: bool, writes: bool) -> None:
    """`writes`: whether the model is one that writes text, and not a reward model."""
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "final": result.final and str(result.final),
                "step": result.step,
                "state": result.state,
                "evaluation": dict(result.evaluation),
            }
        )
    elif result.final:
        lines = [f"model   {result.final}", f"report  {result.folder / 'report.html'}"]
        lines += [f"try it  preftune chat {result.final}"] if writes else []
        print(clean_terminal("\n".join(lines)))
