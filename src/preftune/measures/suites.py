"""Tasks of lm-eval and inspect-ai, run by those libraries on a model and on its reference."""

import importlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.cli.early import INSPECT
from preftune.cli.names import nearest
from preftune.errors import ConfigError, TrainingError, check_range, shown
from preftune.stats import Interval, mean_interval, paired_interval, share_interval
from preftune.storage import write_jsonl


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How tasks run.

    Args:
        folder: a folder with task files of lm-eval, in addition to those of the library.
        limit: examples of each task; all of them when not given.
        num_fewshot: examples in the prompt; those of the task when not given. lm-eval only.
        chat_template: write prompts with the model's chat template. lm-eval only; inspect-ai always does.
        suite_batch_size: examples that the model reads at a time.
    """

    folder: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    suite_batch_size: int = 8

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "limit", "suite_batch_size", prefix="suite.")
        check_range(self, "[0, inf)", "num_fewshot", prefix="suite.")
        if self.folder is not None and not Path(self.folder).expanduser().is_dir():
            raise ConfigError(
                "suite.folder is not a folder", got=self.folder, expected="a folder of task files"
            )


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task, over examples; `difference` is paired by example. The interval of a metric that is
    no mean over examples is the library's standard error, or unknown.
    """

    task: str
    metric: str
    after: Interval
    before: Interval | None = None
    difference: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteEvaluation:
    model: str
    reference: str | None
    scores: Sequence[TaskScore]


Values = Mapping[tuple[str, str], Mapping[str, float]]
"""(task, metric) -> example -> value."""


def evaluate_suites(
    tasks: Sequence[str],
    model: str,
    reference: str | None,
    options: SuiteOptions,
    load: Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    *,
    seed: int = 0,
    output: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> SuiteEvaluation:
    """Every task on the reference, if there is one, and on the model. `load` gives a model with its tokenizer;
    `output` keeps what the libraries record of each example.
    """
    found: list[Values] = []
    for stage, name in (("before", reference), ("after", model)):
        if name is None:
            found.append({})
            continue
        tell(f"{', '.join(tasks)} on {name}")
        pretrained, tokenizer = load(name)
        folder = None if output is None else output / stage
        loaded = _LoadedModel(
            model=pretrained, tokenizer=tokenizer, options=options, seed=seed, folder=folder
        )
        own = [task for task in tasks if not task.startswith(INSPECT)]
        theirs = [task.removeprefix(INSPECT) for task in tasks if task.startswith(INSPECT)]
        values: dict[tuple[str, str], Mapping[str, float]] = {}
        if own:
            values |= _of_lm_eval(own, loaded)
        if theirs:
            values |= _of_inspect(theirs, loaded)
        found.append(values)
        del loaded, pretrained
    before, after = found
    return SuiteEvaluation(
        model=model,
        reference=reference,
        scores=[paired_score(key, before.get(key), values) for key, values in after.items()],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _LoadedModel:
    """A model that is in memory, and how tasks run on it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: SuiteOptions
    seed: int
    folder: Path | None  # for the samples


def _of_lm_eval(tasks: Sequence[str], loaded: _LoadedModel) -> Values:
    """The metrics of each example, as lm-eval logs them."""
    lm_eval: Any = importlib.import_module("lm_eval")
    models: Any = importlib.import_module("lm_eval.models.huggingface")
    manager: Any = importlib.import_module("lm_eval.tasks").TaskManager(include_path=loaded.options.folder)
    unknown = [task for task in tasks if task not in manager.all_tasks and not Path(task).is_file()]
    if unknown:
        near = nearest(unknown[0], manager.all_tasks)
        raise ConfigError(
            f"lm-eval has no task {shown(unknown[0])}",
            do=f"Did you mean {near}?"
            if near
            else "`lm-eval ls tasks` lists them; --suite.folder adds others",
        )
    with quiet_library("lm_eval"):
        results = lm_eval.simple_evaluate(
            model=models.HFLM(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                batch_size=loaded.options.suite_batch_size,
            ),
            tasks=list(tasks),
            num_fewshot=loaded.options.num_fewshot,
            limit=loaded.options.limit,
            apply_chat_template=loaded.options.chat_template,
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=loaded.seed,
        )
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = results["samples"]
    values: dict[tuple[str, str], dict[str, float]] = {}
    for task, ones in samples.items():
        for one in ones:
            for metric in one["metrics"]:
                if isinstance(value := one.get(metric), (bool, int, float)):
                    name = metric if one["filter"] == "none" else f"{metric}, {one['filter']}"
                    values.setdefault((task, name), {})[str(one["doc_id"])] = float(value)
        if loaded.folder is not None:
            loaded.folder.mkdir(parents=True, exist_ok=True)
            write_jsonl(
                loaded.folder / f"lm_eval-{task}.jsonl", map(_plain, ones), "write the samples of a task"
            )
    return values


def _plain(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of lm-eval without what JSON has no form for."""
    return json.loads(json.dumps(dict(sample), default=str))


def _of_inspect(tasks: Sequence[str], loaded: _LoadedModel) -> Values:
    """The scores of each example as numbers: correct is 1, partly correct 0.5, incorrect 0. inspect-ai reads the
    model from a folder, so it is written to a temporary one.
    """
    inspect_ai: Any = importlib.import_module("inspect_ai")
    to_float = importlib.import_module("inspect_ai.scorer").value_to_float()
    with tempfile.TemporaryDirectory(prefix="preftune-") as temporary, quiet_library("inspect_ai"):
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        logs = inspect_ai.eval(
            list(tasks),
            model=importlib.import_module("inspect_ai.model").get_model(
                "hf/model",
                model_path=temporary,
                device=str(loaded.model.device),
                batch_size=loaded.options.suite_batch_size,
            ),
            limit=loaded.options.limit,
            seed=loaded.seed,
            display="none",
            log_dir=str(Path(temporary) / "logs" if loaded.folder is None else loaded.folder),
            log_format="json",
        )
    values: dict[tuple[str, str], dict[str, float]] = {}
    for log in logs:
        if log.status != "success":
            reason = log.error.message if log.error else log.status
            raise TrainingError(f"inspect-ai did not finish {log.eval.task}", got=shown(reason, 300))
        for one in log.samples or []:
            for scorer, score in (one.scores or {}).items():
                key = (log.eval.task, scorer)
                values.setdefault(key, {})[f"{one.id}-{one.epoch}"] = float(to_float(score.value))
    return values


def paired_score(
    key: tuple[str, str], before: Mapping[str, float] | None, after: Mapping[str, float]
) -> TaskScore:
    task, metric = key
    shared = [one for one in after if before is not None and one in before]
    return TaskScore(
        task=task,
        metric=metric,
        after=_interval(list(after.values())),
        before=_interval(list(before.values())) if before else None,
        difference=paired_interval(
            [before[one] for one in shared], [after[one] for one in shared], list(range(len(shared)))
        )
        if before and shared
        else None,
    )


def _interval(values: Sequence[float]) -> Interval:
    return (share_interval if all(0 <= one <= 1 for one in values) else mean_interval)(values)


@contextmanager
def quiet_library(name: str) -> Iterator[None]:
    """Within, the library and the programs that it starts print nothing on standard error, and errors alone are
    logged.
    """
    logger = logging.getLogger(name)
    level, kept = logger.level, os.dup(2)
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        with redirect_stderr(StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logger.setLevel(level)
