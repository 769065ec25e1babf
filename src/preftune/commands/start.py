"""The command `start`: from a data file to a verdict. Every part is a separate command; this one runs them in
order within a time budget, and writes one page.
"""

import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from preftune.advice.advice import advise
from preftune.advice.evidence import evidence_from
from preftune.cli.checks import check_seed
from preftune.cli.model_settings import Precision
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.commands.advise import FILL, written_objective
from preftune.commands.diagnose_data import DiagnoseDataConfig, diagnose_data, diagnosis_json
from preftune.commands.eval import PairEvaluation, evaluate_groups
from preftune.commands.eval_options import EvalConfig
from preftune.commands.sample import SampleConfig, sampled_rows
from preftune.data.memory import memory_source
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.diagnosis.run_material import DiagnoseRunConfig, find_material, find_runs
from preftune.errors import DataError, check_range
from preftune.model.adapters import LoraOptions
from preftune.model.load import quiet_transformers
from preftune.objectives import make_objective
from preftune.progress import Reporter
from preftune.race.options import BudgetOptions, CompareConfig
from preftune.race.run import COMPARISON_PAGE, compare
from preftune.report.page import render_page, write_page
from preftune.sampling.sample import SampleOptions
from preftune.stats import Interval, json_numbers
from preftune.storage import write_json
from preftune.terminal import clean_terminal
from preftune.train.loop import train
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig
from preftune.train.runlog import check_output
from preftune.types import Message

RACE_SHARE, TRAIN_SHARE = 0.45, 0.8  # of the whole budget; of what is left after the race
PromptTurns = str | tuple[Message, ...]
LEAST_STEPS = 8  # of a run in the race; with fewer, methods are left out
SEEDS = 2
PROBE_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """From a data file to a verdict: inspect and diagnose the data, race two or three methods on a subset, train
    the best, and write one page.

    Args:
        data: preference data with pairs: a file, a folder or a hub id.
        output: a new folder for the page, the race and the run.
        model: the model to tune.
        minutes: time budget of the whole command.
        methods: how many objectives race.
        race_rows: rows of the data that the race uses.
        questions: prompts to show with answers before and after training.
        batch_size: prompts per step.
        learning_rate: of all runs; 1e-4 with LoRA and 2e-6 without, when not given.
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        seed: of every draw and order.
        json: print JSON.
        rows: how data files become groups of tokens.
        lora: low-rank adapters.
    """

    data: str
    output: str = "preftune-start"
    model: str = "smollm2-135m-instruct"
    minutes: float = 30.0
    methods: int = 3
    race_rows: int = 400
    questions: int = 5
    batch_size: int = 8
    learning_rate: float | None = None
    precision: Precision = "fp32"
    device: str = "auto"
    seed: int = 0
    json: bool = False
    rows: DataOptions = field(default_factory=DataOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)

    def __post_init__(self) -> None:
        check_range(self, "(0, inf)", "minutes", "learning_rate")
        check_range(self, "[1, inf)", "methods", "batch_size", "questions")
        check_range(self, "[20, inf)", "race_rows")
        check_seed(self.seed)

    @property
    def rate(self) -> float:
        return self.learning_rate or (1e-4 if self.lora.rank else 2e-6)

    def train_config(self, objective: str, folder: str, **limits: Any) -> TrainConfig:
        return TrainConfig(
            data=self.data,
            output=folder,
            model=self.model,
            objective=make_objective(objective),
            batch_size=self.batch_size,
            precision=self.precision,
            device=self.device,
            seed=self.seed,
            rows=limits.pop("rows", self.rows),
            lora=self.lora,
            optim=OptimOptions(learning_rate=self.rate),
            **limits,
        )


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast this machine trains: measured on a short run."""

    step: float  # seconds
    overhead: float  # seconds of a run outside its steps: loading, the reference, evaluation, saving


@dataclass(frozen=True, kw_only=True)
class RacePlan:
    """What fits into the budget of the race."""

    methods: int
    rates: int
    steps: int
    seeds: int

    def seconds(self, pace: Pace) -> float:
        """How long the race takes at this pace."""
        runs = self.methods * (self.seeds + (self.rates if self.rates > 1 else 0))
        return runs * (pace.overhead + self.steps * pace.step)


def plan_start(pace: Pace, seconds: float, methods: int, most_steps: int) -> RacePlan:
    """The largest race that fits: first a second learning rate is given up, then methods. A race of two methods
    is the least.
    """
    options = [(methods, 2), (methods, 1), *((count, 1) for count in range(methods - 1, 1, -1))]
    plans = []
    for count, rates in options:
        runs = count * (SEEDS + (rates if rates > 1 else 0))
        steps = math.floor((seconds / runs - pace.overhead) / pace.step)
        plans.append(RacePlan(methods=count, rates=rates, steps=min(most_steps, max(4, steps)), seeds=SEEDS))
        if steps >= LEAST_STEPS:
            return plans[-1]
    return plans[-1]


def run_start(config: StartConfig, report: Reporter) -> dict[str, Any]:
    """The whole way; returns the content of start.json."""
    started, output = time.monotonic(), Path(config.output)
    check_output(config.output)

    def left() -> float:
        return 60 * config.minutes - (time.monotonic() - started)

    report.note(f"1/5  reading and diagnosing {config.data}")
    diagnosis = diagnosed(config, report)
    methods, reasons = chosen_methods(diagnosis, config.methods)
    report.note(f"2/5  methods that suit the data: {', '.join(methods)}; measuring the speed of this machine")
    pace = measured_pace(config, methods[0], output / "probe")
    groups = min(config.race_rows, int(diagnosis["measures"]["num_records"]))
    plan = plan_start(pace, RACE_SHARE * left(), len(methods), max(1, groups // config.batch_size))
    raced = methods[: plan.methods]
    report.note(_race_note(raced, plan, plan.seconds(pace) / 60, config.minutes))
    race = compare(race_config(config, raced, plan), Reporter(quiet=True))
    best = race["places"][0]
    if best["mean"] is None:
        raise DataError(
            "Every method failed in the race", got=str(best["failed"]), do="Lower --learning_rate"
        )
    report.note(
        f"4/5  {race['summary'] if 'summary' in race else best['method']}; training {best['method']} on all data"
    )
    minutes = max(0.05, (TRAIN_SHARE * left() - pace.overhead) / 60)
    run = train(
        _with_rate(config, best["method"], str(output / "run"), best["rate"], minutes), quiet=report.quiet
    )
    if run.final is None:
        raise KeyboardInterrupt
    report.note("5/5  held-out pairs, and answers before and after")
    found, prompts = evaluated(config, run.folder, report)
    answers = answered(config, str(run.final), prompts, report)
    content = {
        "data": config.data,
        "model": config.model,
        "verdict": verdict(found),
        "next": next_commands(config, found, str(run.folder)),
        "diagnosis": diagnosis["findings"],
        "advice": reasons,
        "race": {"plan": asdict(plan), "places": race["places"], "page": f"race/{COMPARISON_PAGE}"},
        "run": {
            "folder": "run",
            "objective": best["method"],
            "learning_rate": best["rate"],
            "steps": run.step,
        },
        "evaluation": json_numbers(found),
        "answers": answers,
        "minutes": round((time.monotonic() - started) / 60, 2),
    }
    write_json(output / "start.json", content, "write the result", indent=1)
    write_page(output / "start.html", start_page(content, found))
    return content


def _race_note(raced: Sequence[str], plan: RacePlan, expected: float, minutes: float) -> str:
    """Times in minutes."""
    late = "; --minutes is too short for it" if expected > minutes else ""
    return (
        f"3/5  race of {', '.join(raced)}: {plan.steps} steps each, {plan.seeds} seeds, "
        f"about {math.ceil(expected)} min{late}"
    )


def diagnosed(config: StartConfig, report: Reporter) -> Mapping[str, Any]:
    rows = replace(config.rows, bad_rows="skip", soft_label_temperature=None)
    settings = DiagnoseDataConfig(data=config.data, rows=rows)
    found = diagnose_data(settings, report)
    if not found.num_pairs:
        raise DataError(
            "start compares methods on pairs, and the data give none",
            got=f"{found.num_records} rows without pairs",
            do="For labels use: preftune train --objective bnf; for prompts: preftune train --source on-policy --reward NAME",
        )
    return dict(diagnosis_json(found, settings))


def chosen_methods(diagnosis: Mapping[str, Any], count: int) -> tuple[list[str], list[dict[str, str]]]:
    """(objectives in the order of the advice, why each)"""
    evidence = evidence_from(diagnosis["evidence"], "the diagnosis")
    advice = advise(evidence.with_answers(can_sample=False, can_reward=False))
    known = {written_objective(one): one.reason for one in advice.objective}
    for name in FILL:
        known.setdefault(name, "learns from any preferences")
    chosen = list(known)[:count]
    return chosen, [{"method": name, "reason": known[name]} for name in chosen]


def measured_pace(config: StartConfig, objective: str, folder: Path) -> Pace:
    """The pace of a run of two steps."""
    begun = time.monotonic()
    rows = _subset(config)
    probe = config.train_config(
        objective, str(folder), max_steps=PROBE_STEPS, eval_every=PROBE_STEPS, rows=rows
    )
    train(probe, quiet=True)
    wall = time.monotonic() - begun
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step_time"] for line in lines if "step_time" in line]
    step = max(1e-3, sum(steps) / len(steps))
    return Pace(step=step, overhead=max(0.0, wall - step * len(steps)))


def race_config(config: StartConfig, methods: Sequence[str], plan: RacePlan) -> CompareConfig:
    return CompareConfig(
        objectives=",".join(methods),
        output=str(Path(config.output) / "race"),
        data=config.data,
        model=config.model,
        budget=BudgetOptions(steps=plan.steps),
        rates=[config.rate, 3 * config.rate][: plan.rates],
        halving=False,
        seeds=plan.seeds,
        keep_models="none",
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        rows=_subset(config),
        lora=config.lora,
    )


def _subset(config: StartConfig) -> DataOptions:
    limit = min(config.race_rows, config.rows.max_rows or config.race_rows)
    return replace(config.rows, max_rows=limit)


def _with_rate(config: StartConfig, method: str, folder: str, rate: float, minutes: float) -> TrainConfig:
    return replace(
        config.train_config(method, folder, max_minutes=minutes), optim=OptimOptions(learning_rate=rate)
    )


def evaluated(
    config: StartConfig, folder: Path, report: Reporter
) -> tuple[PairEvaluation, list[PromptTurns]]:
    """The held-out pairs of the run, scored before and after, and their first prompts."""
    material = find_material(DiagnoseRunConfig(runs=[str(folder)], output="unused"), find_runs([str(folder)]))
    settings = EvalConfig(
        model=str(folder),
        data=config.data,
        precision=config.precision,
        device=config.device,
        rows=config.rows,
    )
    found = evaluate_groups(settings, material.groups, report)
    records = {record.origin: record.prompt for record in load_records(config.data, config.rows).records}
    known = dict.fromkeys(records[group.origin] for group in material.groups if group.origin in records)
    return found, list(known)[: config.questions]


def answered(
    config: StartConfig, final: str, prompts: Sequence[PromptTurns], report: Reporter
) -> list[dict[str, str]]:
    """Answers of both models to held-out prompts, by the most probable tokens."""
    if not prompts:
        return []
    turns = [one if isinstance(one, str) else [turn.as_dict() for turn in one] for one in prompts]
    source = memory_source([{"prompt": one} for one in turns])
    sides = []
    for model in (config.model, final):
        settings = SampleConfig(
            model=model,
            prompts=source,
            precision=config.precision,
            device=config.device,
            sampling=SampleOptions(max_new_tokens=96, temperature=0.0),
        )
        sides.append(
            [str(row["completions"][0]) for row in sampled_rows(settings, Reporter(quiet=report.quiet))]
        )
    return [
        {
            "prompt": prompt if isinstance(prompt, str) else prompt[-1].content,
            "before": before,
            "after": after,
        }
        for prompt, before, after in zip(prompts, *sides, strict=True)
    ]


def verdict(found: PairEvaluation) -> str:
    """One sentence that states what was measured, and how sure it is."""
    share = found.intervals["rewards/accuracies"]
    numbers = f"{_percent(share)} of {found.num_pairs} held-out pairs"
    if share.low > 0.5:
        return (
            f"The tuned model moved towards the preferred answers on {numbers}: training works on these data."
        )
    if share.high < 0.5:
        return f"The tuned model moved away from the preferred answers: towards them on only {numbers}."
    return (
        f"The tuned model moved towards the preferred answers on {numbers}. The interval includes one half, so the "
        "tuned model and the start are not told apart: train longer, or add data."
    )


def _percent(share: Interval) -> str:
    return f"{share.mean:.0%} (95% interval {share.low:.0%} to {share.high:.0%})"


def next_commands(config: StartConfig, found: PairEvaluation, folder: str) -> list[str]:
    """A chat with both models, and the run again with its own settings but without its time budget."""
    good = found.intervals["rewards/accuracies"].low > 0.5
    chat = f"preftune chat {shlex.quote(folder)} --compare {shlex.quote(config.model)}"
    settings = shlex.quote(str(Path(folder) / "config.yaml"))
    again = f"preftune train --config {settings} --max_minutes null --epochs 3 --output runs/longer"
    return [chat, again][:: 1 if good else -1]


def start_page(content: Mapping[str, Any], found: PairEvaluation) -> str:
    rows = [
        (name, f"{one.mean:.4g}", f"{one.low:.4g} to {one.high:.4g}") for name, one in found.intervals.items()
    ]
    return render_page(
        "start.html", title=f"{content['data']} on {content['model']}", numbers=rows, **content
    )


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(StartConfig, arguments, "preftune start", positional="data")
    content = run_start(settings, Reporter(quiet=settings.json))
    if settings.json:
        print_json(content)
        return 0
    lines = [
        content["verdict"],
        f"page  {Path(settings.output) / 'start.html'}",
        f"model {Path(settings.output) / 'run' / 'final'}",
        f"next  {content['next'][0]}",
    ]
    print(clean_terminal("\n".join(lines)))
    return 0
