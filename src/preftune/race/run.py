"""The command `compare`: the runs of a race, each a folder of files, until a table shows which methods are
tied best.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.data.options import DataOptions
from preftune.data.records import load_prompts
from preftune.errors import DataError, DivergenceError, StorageError
from preftune.progress import Reporter
from preftune.race.halving import Trial, models_wanted, next_trials
from preftune.race.options import CompareConfig, Contender
from preftune.race.problem import Result, run_trials, same_setting
from preftune.race.report import brief, race_table, write_race
from preftune.report.read import RunFiles, read_run
from preftune.rewards.judged import sample_and_judge
from preftune.sampling.sample import load_sampler
from preftune.storage import locked_folder, remove_leftovers, write_json
from preftune.train.loop import train_or_resume
from preftune.train.runlog import claim_folder, to_plain

RESULT, COMPARISON, COMPARISON_PAGE = "result.json", "comparison.json", "comparison.html"

GROWS = ("objectives", "seeds", "keep_models", "json", "output")
"""Settings that may change between two calls: what was run stays as it is."""


def compare(config: CompareConfig, report: Reporter) -> dict[str, Any]:
    """The whole race; runs that are over are only read. Returns the content of comparison.json."""
    with locked_folder(Path(config.output)):
        return _compare(config, report)


def _compare(config: CompareConfig, report: Reporter) -> dict[str, Any]:
    output = Path(config.output)
    remove_leftovers(output)
    claim_folder(config.output, "compare.yaml", {k: v for k, v in to_plain(config).items() if k not in GROWS})
    race, methods = config.race(), {one.label: one for one in config.contenders()}
    results: dict[Trial, Result] = {}
    while waiting := next_trials(race, {trial: result.score for trial, result in results.items()}):
        batch = next(iter(same_setting(waiting).values())) if config.problem is not None else [waiting[0]]
        contender = methods[waiting[0].method]
        folders = {trial: output / config.folder(contender, trial) for trial in batch}
        results |= {
            trial: found for trial, folder in folders.items() if (found := _read_result(folder)) is not None
        }
        missing = [trial for trial in batch if trial not in results]
        if config.problem is None:
            new = {trial: _train_result(config, contender, trial, report) for trial in missing}
        else:
            new = {trial: run.result for trial, run in run_trials(config.lab_race(), missing).items()}
        for trial, result in new.items():
            write_json(folders[trial] / RESULT, asdict(result), "write the result", indent=1)
            results[trial] = result
            report.note(f"{len(results)} of {race.num_trials}  {_told(config, trial, result)}")
        _prune(config, output, methods, results)
    content = _content(config, results)
    write_json(output / COMPARISON, content, "write the result", indent=1)
    write_race(content, output / COMPARISON_PAGE)
    return content


def _told(config: CompareConfig, trial: Trial, result: Result) -> str:
    ended = (
        f"failed {brief(result.failed)}" if result.failed else f"{config.measured.title} {result.score:.4g}"
    )
    part = f"{config.budget.part(trial.share):g} {config.budget.unit}"
    return f"{trial.method}  rate {trial.rate:g}  {part}  seed {trial.seed}: {ended}"


def _read_result(folder: Path) -> Result | None:
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Result(**{**plain, "curve": tuple(map(tuple, plain["curve"]))})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path} is damaged", got=str(error), do="Delete it to measure this run again"
        ) from error


# --- a run of a language model ---


def _train_result(config: CompareConfig, contender: Contender, trial: Trial, report: Reporter) -> Result:
    """Trains what is not trained yet: an interrupted run resumes from its checkpoint, one without a
    checkpoint starts again.
    """
    folder = Path(config.output) / config.folder(contender, trial)
    settings = config.train_settings(contender, trial, str(folder))
    try:
        ended = train_or_resume(settings, quiet=True)
    except DivergenceError:
        run = read_run(folder)
        return Result(
            score=None,
            failed=f"after step {run.last_step}: {run.message}",
            counters=_counters(run),
            measures={},
        )
    if ended.final is None:
        raise KeyboardInterrupt
    run = read_run(folder)
    judged = _judged(config, trial, folder / "final", report) if config.measured.name == "judged" else {}
    return _measured(config, run, judged)


def _measured(config: CompareConfig, run: RunFiles, judged: Mapping[str, float]) -> Result:
    """The last held-out measures of a run, and the way there."""
    measure = config.measured
    values = {name: series.last for name, series in run.evaluation.items()} | dict(judged)
    curve: dict[int, float] = {}
    if measure.name == "margin" and "log_ratios/chosen" in run.evaluation:
        chosen, rejected = (run.evaluation[f"log_ratios/{side}"] for side in ("chosen", "rejected"))
        curve = {step: a - b for step, a, b in zip(chosen.steps, chosen.values, rejected.values, strict=True)}
    elif series := run.evaluation.get({"accuracy": "rewards/accuracies"}.get(measure.name, measure.name)):
        curve = dict(zip(series.steps, series.values, strict=True))
    if not curve and not judged:
        raise DataError(
            f"{run.folder} held nothing out that has the measure {measure.name}",
            got=", ".join(values) or "no evaluation",
            expected="held-out preferences",
            do="Raise --eval_fraction, give --eval_data, or choose another --measure",
        )
    score = (
        judged["judged"] if judged else curve.get(run.last_step)
    )  # what is not finite is not in a run's files
    drawn = run.train.get("samples_drawn")
    samples = dict(zip(drawn.steps, drawn.values, strict=True)) if drawn else {}
    return Result(
        score=score,
        failed=None
        if score is not None
        else f"after step {run.last_step}: the {measure.title} is not finite",
        counters=_counters(run),
        measures=values,
        curve=tuple((float(step), samples.get(step, 0.0), curve[step]) for step in sorted(curve)),
    )


def _counters(run: RunFiles) -> dict[str, float]:
    counts = {
        name: run.train[name].last
        for name in ("samples_drawn", "reward_queries", "prompts_seen", "num_tokens")
        if name in run.train
    }
    return {
        "steps": float(run.last_step),
        **counts,
        "seconds": sum(run.train["step_time"].values) if run.train else 0.0,
    }


def _judged(config: CompareConfig, trial: Trial, model: Path, report: Reporter) -> dict[str, float]:
    """The reward of the model's completions of the prompts; the noise is the seed's, the same for all
    methods.
    """
    assert config.judge_prompts is not None and config.judge_reward is not None
    records = load_prompts(config.judge_prompts, DataOptions(template=config.rows.template), report)
    loaded, renderer = load_sampler(str(model), config.loading, config.precision, config.device, config.rows)
    found = sample_and_judge(loaded, renderer, records, config.sampling, config.judge_reward, trial.seed)
    known = [one.reward for one in found if one.reward is not None]
    if not known:
        raise DataError(
            "The reward has no opinion on any completion",
            got=config.judge_reward,
            do="Look at --judge_prompts",
        )
    return {
        "judged": sum(known) / len(known),
        "judged/ended": sum(one.ended for one in found) / len(found),
        "judged/length": sum(one.num_tokens for one in found) / len(found),
    }


def _prune(
    config: CompareConfig, output: Path, methods: Mapping[str, Contender], results: Mapping[Trial, Result]
) -> None:
    """Weights that nothing needs any more: checkpoints of runs that are over, and models that cannot be the
    best.
    """
    if config.problem is not None or config.keep_models == "all":
        return
    scores = {trial: result.score for trial, result in results.items()}
    wanted = models_wanted(config.race(), scores) if config.keep_models == "best" else frozenset()
    for trial in results:
        folder = output / config.folder(methods[trial.method], trial)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if trial not in wanted:
            shutil.rmtree(folder / "final", ignore_errors=True)


# --- what is written and reported ---


def _content(config: CompareConfig, results: Mapping[Trial, Result]) -> dict[str, Any]:
    """Everything, as JSON holds it: for the page, and for those who compute on."""
    race, measure = config.race(), config.measured
    entries = {trial: asdict(result) for trial, result in results.items()}
    methods = {}
    for one in config.contenders():
        mine = {trial: entry for trial, entry in entries.items() if trial.method == one.label}
        runs = [
            {"rate": t.rate, "share": t.share, "seed": t.seed, "folder": str(config.folder(one, t)), **entry}
            for t, entry in mine.items()
        ]
        methods[one.label] = {
            "tuning": [r for r in runs if r["seed"] not in race.seeds],
            "runs": [r for r in runs if r["seed"] in race.seeds],
        }
    scores = {trial: result.score for trial, result in results.items()}
    content = {
        "on": config.problem or config.data,
        "source": config.loop.source if config.problem else config.source,
        "measure": asdict(measure),
        "budget": {"unit": config.budget.unit, "amount": config.budget.amount},
        "rates": list(race.rates),
        "tuning_seeds": list(race.tuning_seeds),
        "seeds": list(race.seeds),
        "rungs": [
            {"rates": rung.count, "share": rung.share, "budget": config.budget.part(rung.share)}
            for rung in race.rungs
        ],
        "methods": methods,
        "model": None if config.keep_models == "none" or config.problem else _best_model(config, scores),
    }
    table = race_table(content)
    content["summary"] = table.summary
    content["places"] = [asdict(row) for row in table.rows]
    return content


def _best_model(config: CompareConfig, scores: Mapping[Trial, float | None]) -> str | None:
    """The final/ of the best run of the best method, relative to the output; None if it was deleted by an
    earlier call.
    """
    methods = {one.label: one for one in config.contenders()}
    finals = [
        config.folder(methods[trial.method], trial) / "final"
        for trial in models_wanted(config.race(), scores)
    ]
    return next((str(final) for final in finals if (Path(config.output) / final).exists()), None)
