"""What each verb does: settings in, work done by the rooms, results printed."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from preftune.cli.checks import resumed_folder
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings, settings_from_run
from preftune.errors import ConfigError
from preftune.model.load import quiet_transformers
from preftune.progress import Reporter
from preftune.terminal import clean_terminal
from preftune.train.dry_run import dry_run
from preftune.train.loop import RunResult, resume, train
from preftune.train.options import TrainConfig
from preftune.train.processes import Processes, together


def run(arguments: Sequence[str]) -> int:
    """`train`: a new run, or `--resume RUN` to go on with one; under torchrun by all of its processes
    together.
    """
    quiet_transformers()
    as_json, rehearses = "--json" in arguments, not {"--dry-run", "--dry_run"}.isdisjoint(arguments)
    words = [word for word in arguments if word not in ("--json", "--dry-run", "--dry_run")]
    folder = resumed_folder([*words, *(["--dry-run"] if rehearses else [])], "train")
    if folder is not None:
        if not (Path(folder) / "config.yaml").is_file():
            raise ConfigError(
                f"{folder} is not a run folder", got="no config.yaml in it", expected="what --output made"
            )
        settings = replace(
            settings_from_run(TrainConfig, Path(folder)), output=folder
        )  # the folder may have moved
        start = resume
    else:
        settings = parse_settings(
            TrainConfig,
            words,
            prog="preftune train",
            description="Tune a model on preferences. `--resume RUN` goes on with one; `--dry-run` tells what it will cost.",
        )
        start = train
    with together(settings.process_minutes) as processes:
        if rehearses:
            return _rehearse(settings, as_json, processes)
        result = start(settings, quiet=as_json, processes=processes)
        if processes.is_main:
            _tell_run(result, as_json, writes=settings.objective.trains == "policy")
    return 0 if result.state == "finished" else 130


def _rehearse(settings: TrainConfig, as_json: bool, processes: Processes) -> int:
    found = dry_run(settings, Reporter(quiet=as_json), processes)
    if as_json:
        print_json(asdict(found))
    else:
        print(clean_terminal("\n".join(found.lines())))
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
        lines += [f"try it  preftune sample --model {result.final}"] if writes else []
        print(clean_terminal("\n".join(lines)))
