"""The settings of the command `eval`, and what the run of a model states about its reference and beta."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preftune.cli.checks import READING_OPTIONS, check_seed, refuse_idle_rows
from preftune.cli.model_settings import ModelSettings
from preftune.errors import ConfigError, StorageError, check_range, refuse_idle
from preftune.measures.suites import SuiteOptions
from preftune.model.layout import LayoutOptions
from preftune.sampling.sample import SampleOptions
from preftune.spec.strict_yaml import parse_yaml


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ModelSettings):
    """How good a model is: on preference data by its log-ratios to a reference, on prompts by a reward of its
    samples or by a judge that compares them with other answers, and on tasks of lm-eval and inspect-ai.

    Args:
        model: the model to evaluate.
        data: preference data with pairs.
        prompts: a data file; only its prompts are used.
        tasks: names of lm-eval tasks, and inspect:NAME for tasks of inspect-ai, with commas in between.
        reference: what to compare with: the anchor of log-ratios, and the model "before" on prompts and tasks;
            for the final/ of a run, what it started from, when not given.
        reward: on prompts: a built-in reward, module:function or a weighted sum; docs/rewards.md lists them.
        judge: on prompts: judge(url=URL, model=NAME), or any reward, which decides between the model's answers
            and those of the reference.
        against: with a judge: the column of the prompts file with the answers to compare with, instead of a
            reference; also chosen, rejected or completion.
        output: on prompts and tasks: a folder for the samples.
        beta: on pairs: the implicit reward is beta * log-ratio; for the final/ of a run, the run's own, when not
            given; otherwise 1.
        sampling: how completions are drawn.
        suite: how tasks run.
        layout: how groups are laid out for the model.
    """

    model: str
    data: str | None = None
    prompts: str | None = None
    tasks: str | None = None
    reference: str | None = None
    reward: str | None = None
    judge: str | None = None
    against: str | None = None
    output: str | None = None
    beta: float | None = None
    sampling: SampleOptions = field(default_factory=SampleOptions)
    suite: SuiteOptions = field(default_factory=SuiteOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)

    def __post_init__(self) -> None:
        given = [name for name in ("data", "prompts", "tasks") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "eval wants one of preference data, prompts and tasks",
                got=" and ".join(given) or "none of them",
                expected="--data FILE, --prompts FILE or --tasks NAMES",
            )
        check_range(self, "(0, inf)", "beta")
        check_seed(self.seed)
        {"data": self._check_data, "prompts": self._check_prompts, "tasks": self._check_tasks}[given[0]]()

    def _check_data(self) -> None:
        idle = ("reward", "judge", "against", "output", "sampling", "seed")
        refuse_idle(self, "on preference data", *idle, got="--data", do="Use --prompts FILE")
        refuse_idle(self, "on preference data", "suite", got="--data", do="Use --tasks NAMES")

    def _check_prompts(self) -> None:
        if (self.reward is None) == (self.judge is None):
            raise ConfigError(
                "Answers to prompts are scored by a reward or compared by a judge",
                got="neither" if self.reward is None else "both",
                expected="--reward NAME or module:function; or --judge NAME",
            )
        if self.judge is None:
            refuse_idle(self, "without a judge", "against", do="Add --judge NAME")
        elif self.against is not None and self.reference is not None:
            raise ConfigError(
                "A judge compares with one kind of answer",
                got="--against and --reference",
                expected="one of them",
            )
        refuse_idle(self, "on prompts", "beta", "layout", "suite", got="--prompts", do="Leave it out")
        refuse_idle_rows(self.rows, READING_OPTIONS, "prompts")

    def _check_tasks(self) -> None:
        idle = ("reward", "judge", "against", "beta", "layout", "sampling", "rows")
        refuse_idle(self, "on tasks", *idle, got="--tasks", do="Leave it out")


def reference_of(settings: EvalConfig) -> str:
    """The reference that was named, or the model that the run of RUN/final started from."""
    model = settings.reference or started_from(settings)
    if model is None:
        raise ConfigError(
            "eval compares with a reference",
            got=f"none, and {settings.model} is not a run or the final/ of one",
            expected="--reference MODEL",
            do="Name the model that the tuning started from",
        )
    return model


def started_from(settings: EvalConfig) -> str | None:
    """The model that the run of RUN/final started from."""
    model = _run_config(settings).get("model")
    return model if isinstance(model, str) else None


def beta_of(settings: EvalConfig) -> tuple[float, bool]:
    """(beta, whether it is the run's own): the one that was given, else that of the run of RUN/final, else 1."""
    if settings.beta is not None:
        return settings.beta, False
    objective = _run_config(settings).get("objective")
    beta = objective.get("beta") if isinstance(objective, Mapping) else None
    if isinstance(beta, (int, float)) and not isinstance(beta, bool) and beta > 0:
        return float(beta), True
    return 1.0, False


def _run_config(settings: EvalConfig) -> Mapping[str, object]:
    """The configuration of the run that RUN or RUN/final stands for; empty if the model is neither."""
    folder = Path(settings.model).expanduser().resolve()
    run = folder if (folder / "final").is_dir() else folder.parent
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        if not (run / "manifest.json").is_file():  # somebody else's file
            return {}
        raise StorageError(
            f"The settings of the run {run} cannot be read",
            got=error,
            expected="its config.yaml as it was written",
            do="Restore the file, or name the model by a copy of its folder `final` alone",
        ) from error
    return config if isinstance(config, Mapping) else {}
