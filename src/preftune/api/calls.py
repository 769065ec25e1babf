"""`preftune.sample`, `preftune.evaluate`, `preftune.diagnose` and `preftune.compare`."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from preftune.api.results import ResultTable
from preftune.cli.keywords import keyword_flags
from preftune.cli.settings import parse_settings
from preftune.cli.words import prepared
from preftune.commands.diagnose_data import DiagnoseDataConfig, diagnose_data, diagnosis_json
from preftune.commands.diagnose_run import write_run_diagnosis
from preftune.commands.eval import Evaluation, PairEvaluation, evaluation_of, win_rows
from preftune.commands.eval_options import EvalConfig
from preftune.commands.sample import SampleConfig, sampled_rows
from preftune.data.memory import source_name
from preftune.data.names import suffix_of
from preftune.diagnosis.run_material import DiagnoseRunConfig
from preftune.errors import ConfigError
from preftune.measures.suites import SuiteEvaluation
from preftune.model.load import quiet_transformers
from preftune.progress import Reporter
from preftune.race.options import CompareConfig
from preftune.race.report import race_table
from preftune.race.run import COMPARISON_PAGE, compare
from preftune.report.diagnosis import summary
from preftune.rewards.resolve import register_reward
from preftune.rewards.win_rate import WinRate
from preftune.stats import Interval, json_numbers
from preftune.train.call import model_name

T = TypeVar("T")


def sample_model(
    model: Any,
    prompts: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quiet: bool = True,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Completions of prompts, as `preftune sample` draws them.

    Args:
        model: a name, a run folder, a model folder, or a loaded model with its `tokenizer`.
        prompts: a text, a list of texts, a data file, or rows, a DataFrame or a data set with prompts.
        tokenizer: of a loaded model.
        quiet: print no progress.
        settings: every setting of `preftune sample`: num_completions=4, temperature=0.7, max_new_tokens=64.

    Returns:
        A row for each prompt with its completions, which `preftune.train` and rewards read.
    """
    quiet_transformers()
    objects: dict[str, Any] = {}
    if isinstance(prompts, str) and not suffix_of(Path(prompts)):
        objects["prompt"] = prompts
    elif isinstance(prompts, str):
        objects["prompts"] = prompts
    else:
        objects["prompts"] = _source(prompts)
    with _given_model(model, tokenizer) as name:
        config = _config(SampleConfig, "sample", {"model": name, **settings}, objects)
        return sampled_rows(config, Reporter(quiet=quiet))


def evaluate_model(
    model: Any,
    data: Any = None,
    *,
    prompts: Any = None,
    reward: Any = None,
    judge: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quiet: bool = True,
    **settings: Any,
) -> ResultTable:
    """How good a model is, as `preftune eval` measures it: on pairs (`data`), on `prompts` by a `reward` or by a
    `judge` that compares answers, or on `tasks` of lm-eval and inspect-ai.

    Args:
        model: as in `sample`; of a run folder, the reference and beta are known.
        data: preference data: a file, rows, a DataFrame or a data set.
        prompts: the same, of which the prompts are used.
        reward: a built-in reward, or a function f(prompts, completions, **columns).
        judge: the same, or "judge(url=URL, model=NAME)"; with against="COLUMN" it compares with a file's answers.
        tokenizer: of a loaded model.
        quiet: print no progress.
        settings: every setting of `preftune eval`: reference="...", beta=0.1, tasks="gsm8k", max_new_tokens=64.
    """
    quiet_transformers()
    given = {"data": data, "prompts": prompts}
    objects = {key: _source(value) for key, value in given.items() if value is not None}
    for key, value in (("reward", reward), ("judge", judge)):
        if value is not None:
            objects[key] = value if isinstance(value, str) else register_reward(value)
    with _given_model(model, tokenizer) as name:
        config = _config(EvalConfig, "eval", {"model": name, **settings}, objects)
        return _evaluation_table(evaluation_of(config, Reporter(quiet=quiet)))


def _evaluation_table(found: Evaluation) -> ResultTable:
    """The intervals of an evaluation as rows, with one sentence."""
    if isinstance(found, SuiteEvaluation):
        rows = [
            {"quantity": f"{one.task}, {one.metric}, {stage}", **_numbers(interval)}
            for one in found.scores
            for stage, interval in (
                ("before", one.before),
                ("after", one.after),
                ("difference", one.difference),
            )
            if interval is not None
        ]
        summary = f"{len({one.task for one in found.scores})} tasks on {found.model}"
        return ResultTable(rows=rows, content=json_numbers(found), summary=summary)
    if isinstance(found, PairEvaluation):
        intervals, summary = found.intervals, f"{found.num_pairs} pairs, beta {found.beta:g}"
    elif isinstance(found, WinRate):
        intervals, summary = win_rows(found), f"{found.num_prompts} prompts against {found.opponent}"
    else:
        stages = {"reference": found.before.reward, "model": found.after.reward}
        intervals = {**stages, "difference": found.difference}
        summary = f"{found.num_prompts} prompts, reward {found.reward}"
    rows = [_row("quantity", key, one) for key, one in intervals.items()]
    return ResultTable(rows=rows, content=json_numbers(found), summary=summary)


def diagnose(
    source: Any,
    *,
    model: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reward: Any = None,
    quiet: bool = True,
    **settings: Any,
) -> ResultTable:
    """What a data set can teach a model, or what a run did to its model, as `preftune diagnose` measures it.

    Args:
        source: a run folder or a list of run folders (with `output`, a new folder for the page); or data: a file,
            rows, a DataFrame or a data set.
        model: of data: the model that is to be tuned; without one, what needs no model is measured.
        tokenizer: of a loaded model.
        reward: of data: a built-in reward or a function.
        quiet: print no progress.
        settings: every setting of `preftune diagnose run` or `preftune diagnose data`.
    """
    quiet_transformers()
    report = Reporter(quiet=quiet)
    runs = _run_folders(source)
    if runs:
        if model is not None or reward is not None:
            raise ConfigError("A run has its own model and data", got="model or reward", do="Leave it out")
        config = _config(DiagnoseRunConfig, "diagnose-run", {"runs": runs, **settings}, {})
        content, page = write_run_diagnosis(config, report)
        rows = [
            {"run": run["name"], "side": side, "quantity": name, **_numbers(numbers["intervals"][name])}
            for run in content["runs"]
            for side, numbers in run["sides"].items()
            for name in ("mean_log_ratio", "mean_logit_shift", "gini")
        ]
        return ResultTable(rows=rows, content=content, summary=" ".join(summary(content)), page=str(page))
    objects = {"data": _source(source)}
    if reward is not None:
        objects["reward"] = reward if isinstance(reward, str) else register_reward(reward)
    with _given_model(model, tokenizer) as name:
        config = _config(DiagnoseDataConfig, "diagnose-data", {"model": name, **settings}, objects)
        found: dict[str, Any] = dict(diagnosis_json(diagnose_data(config, report), config))
    rows = [
        {key: one[key] for key in ("name", "measured", "verdict", "meaning")} for one in found["findings"]
    ]
    verdicts = [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts))
    return ResultTable(rows=rows, content=found, summary=f"{found['source']}: {counts}")


def compare_methods(
    data: Any,
    objectives: str | Sequence[str],
    *,
    output: str | PathLike[str],
    model: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reward: Any = None,
    eval_data: Any = None,
    quiet: bool = True,
    **settings: Any,
) -> ResultTable:
    """Methods under an equal budget, each tuned, on several seeds, as `preftune compare` runs them.

    Args:
        data: preference data: a file, rows, a DataFrame or a data set.
        objectives: "bnf,dpo(beta=0.5)" or a list of such names.
        output: a folder for the runs, the numbers and the page; the same call continues what is there.
        model: as in `sample`; the bundled model if not given.
        tokenizer: of a loaded model.
        reward: on-policy: a built-in reward or a function.
        eval_data: held-out data.
        quiet: print no progress.
        settings: every setting of `preftune compare`: steps=60 or minutes=5, rates=[1e-6, 1e-5], seeds=3.
    """
    quiet_transformers()
    objects: dict[str, Any] = {"data": _source(data)}
    if eval_data is not None:
        objects["eval_data"] = _source(eval_data)
    if reward is not None:
        objects["reward"] = reward if isinstance(reward, str) else register_reward(reward)
        settings.setdefault("source", "on-policy")
    folder = Path(output)
    given = {
        "output": str(folder),
        "objectives": objectives if isinstance(objectives, str) else ",".join(objectives),
        "model": None if model is None else model_name(model, tokenizer, folder),
        **settings,
    }
    content = compare(_config(CompareConfig, "compare", given, objects), Reporter(quiet=quiet))
    table = race_table(content)
    rows = [
        {
            "method": row.method,
            "learning_rate": row.rate,
            **(_numbers(row.mean) if row.mean else {"mean": None, "low": None, "high": None}),
            "best": row.tied,
        }
        for row in table.rows
    ]
    return ResultTable(rows=rows, content=content, summary=table.summary, page=str(folder / COMPARISON_PAGE))


def _config(kind: type[T], command: str, given: Mapping[str, Any], objects: Mapping[str, Any]) -> T:
    """The settings of a command. `objects` are texts that a command line would not take as they are."""
    stand_ins = {name: "in-memory" if name not in ("reward", "judge") else "brief" for name in objects}
    words = prepared(command, keyword_flags({**given, **stand_ins}))
    config: Any = parse_settings(kind, words, prog=f"preftune.{command.partition('-')[0]}", description="")
    return replace(config, **objects)


def _source(data: Any) -> str:
    """The name of a source; texts in a list are prompts."""
    if isinstance(data, list | tuple) and data and all(isinstance(one, str) for one in data):
        return source_name([{"prompt": one} for one in data])
    return data if isinstance(data, str) else source_name(data)


@contextmanager
def _given_model(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str | None]:
    """The name of a model; a loaded one is written to a folder for as long as it is needed."""
    if model is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="preftune-") as folder:
        yield model_name(model, tokenizer, Path(folder) / "model")


def _run_folders(source: Any) -> list[str]:
    many = source if isinstance(source, list | tuple) else [source]
    folders = [
        str(one) for one in many if isinstance(one, str | PathLike) and (Path(one) / "config.yaml").is_file()
    ]
    return folders if len(folders) == len(many) else []


def _row(heading: str, name: str, interval: Interval) -> dict[str, Any]:
    return {heading: name, **_numbers(interval)}


def _numbers(interval: Interval | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(interval, Interval):
        return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.num}
    return {name: interval.get(name) for name in ("mean", "low", "high")}
