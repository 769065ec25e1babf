"""Which runs are diagnosed, and on which pairs: found and checked before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from preftune.cli.checks import check_seed
from preftune.cli.model_settings import ModelSettings
from preftune.cli.settings import settings_from_run
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.render import Renderer, make_renderer
from preftune.errors import ConfigError, DataError, check_range, refuse_idle
from preftune.model.layout import LayoutOptions
from preftune.model.limits import model_limits
from preftune.model.load import check_same_tokenizer, load_tokenizer, resolve_model
from preftune.report.diagnosis import MAX_RUNS
from preftune.report.page import distinct_names
from preftune.train.groups import read_data, within
from preftune.train.options import TrainConfig
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class DiagnoseRunConfig(ModelSettings):
    """Where finished runs moved probability, on pairs that they did not learn from: numbers, tokens and one
    page.

    Args:
        runs: run folders with their final/ models, at most 8.
        output: a new folder for diagnosis.json, tokens.jsonl and diagnosis.html.
        data: held-out pairs for all runs; by default those that the runs themselves held out, which must be
            the same in all runs.
        max_prompts: use at most this number of held-out prompts.
        samples: completions to draw of each prompt from every policy and from its reference; 0 draws none.
        max_new_tokens: budget of a drawn completion.
        examples: pairs of which tokens.jsonl holds every token.
        json: print what diagnosis.json holds.
        rows: how `data` becomes groups of tokens.
        layout: how groups are laid out for the model.
    """

    runs: list[str]
    output: str
    data: str | None = None
    max_prompts: int | None = None
    samples: int = 2
    max_new_tokens: int = 64
    examples: int = 8
    layout: LayoutOptions = field(default_factory=LayoutOptions)

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= MAX_RUNS:
            raise ConfigError(
                "diagnose run wants a few run folders",
                got=len(self.runs),
                expected=f"1 to {MAX_RUNS}",
                do="preftune diagnose run RUN [RUN ...] --output FOLDER",
            )
        check_range(self, "[1, inf)", "max_prompts", "max_new_tokens")
        check_range(self, "[0, inf)", "samples", "examples")
        if self.samples == 0 and (self.max_new_tokens != 64 or self.seed):
            raise ConfigError(
                "max_new_tokens and seed have no effect when nothing is drawn",
                got="samples 0",
                do="Leave them out",
            )
        if self.data is None:
            refuse_idle(
                self,
                "on what the runs held out, which is read as they read it",
                "rows",
                got="no data",
                do="Add --data FILE, or leave rows out",
            )
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run and what it started from."""

    name: str
    folder: Path
    config: TrainConfig

    @property
    def final(self) -> str:
        return str(self.folder / "final")

    @property
    def reference(self) -> str:
        return self.config.reference.model or self.config.model


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """The pairs that all runs are measured on, and how their tokens read."""

    source: str
    groups: Sequence[Group]
    renderer: Renderer

    @property
    def clusters(self) -> list[int]:
        """The prompt of each pair."""
        return [index for index, group in enumerate(self.groups) for _ in group.pairs]

    def of_side(self, side: int, values: Sequence[Sequence]) -> list:
        """Of values [group][completion], those of the chosen (0) or rejected (1) completion of each pair."""
        return [
            row[pair[side]] for group, row in zip(self.groups, values, strict=True) for pair in group.pairs
        ]


def find_runs(folders: Sequence[str]) -> list[Run]:
    """The runs in these folders; an error where one is none, is not finished, or trained no policy."""
    paths = [Path(folder).expanduser() for folder in folders]
    resolved = [path.resolve() for path in paths]
    for path, where in zip(paths, resolved, strict=True):
        if not (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is not a run folder", got="no config.yaml in it", expected="what train --output made"
            )
        if not (path / "final").is_dir():
            raise ConfigError(
                f"The run {path} has no final model",
                got="no final/ in it",
                expected="a finished run",
                do=f"Continue with: preftune train --resume {path}",
            )
        if resolved.count(where) > 1:
            raise ConfigError("A run folder is given twice", got=str(path), do="Name each run folder once")
    runs = [
        Run(name=name, folder=path, config=settings_from_run(TrainConfig, path))
        for name, path in zip(distinct_names(paths), paths, strict=True)
    ]
    for run in runs:
        if run.config.objective.trains == "reward model":
            raise ConfigError(
                f"{run.folder} trained a reward model, which gives no log-probabilities",
                got=run.config.objective.name,
                expected="runs that trained a policy",
                do="Leave it out",
            )
    return runs


def find_material(settings: DiagnoseRunConfig, runs: Sequence[Run]) -> Material:
    """The pairs of `data`, or those that the runs held out."""
    for run in runs:
        check_same_tokenizer(run.final, run.reference, settings.loading)
    for run in runs[1:]:
        check_same_tokenizer(runs[0].final, run.final, settings.loading)
    tokenizer = load_tokenizer(resolve_model(runs[0].final), settings.loading)
    if settings.data is not None:
        source, rows = settings.data, settings.rows
        groups = prepare(source, tokenizer, "pairs", rows).groups
    else:
        source, rows, groups = _held_out(runs, tokenizer)
    groups = groups[: settings.max_prompts]
    return Material(source=source, groups=groups, renderer=make_renderer(tokenizer, rows))


def _held_out(
    runs: Sequence[Run], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, DataOptions, tuple[Group, ...]]:
    """The pairs of prompts that no run trained on, if all runs held out the same pairs."""
    do = "Add --data FILE with pairs that no run has seen"
    config = runs[0].config
    for run in runs[1:]:
        for name in ("data", "eval_data", "eval_fraction", "seed", "rows", "source"):
            if getattr(run.config, name) != getattr(config, name):
                raise ConfigError(
                    f"The runs did not hold out the same pairs: {name} differs",
                    do=do,
                    got=f"{runs[0].name} and {run.name}",
                    expected="runs with the same data and seed",
                )
    held = read_data(within(config.data_plan, model_limits(config.model, config.loading)), tokenizer).held
    if not held:
        raise ConfigError(f"The run {runs[0].folder} held out nothing", got="eval_fraction 0", do=do)
    prompts = {group.prompt.tobytes() for group in held}
    source = config.eval_data or config.data
    try:
        pairs = prepare(source, tokenizer, "pairs", config.rows).groups
    except DataError as error:
        raise DataError(f"The data of the runs give no pairs: {error}", do=do) from error
    groups = tuple(group for group in pairs if group.prompt.tobytes() in prompts)
    if not groups:
        raise DataError(
            "None of the prompts that the runs held out has a pair", got=f"{len(held)} held-out groups", do=do
        )
    return source, config.rows, groups
