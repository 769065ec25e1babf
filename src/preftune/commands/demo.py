"""The main job in small: the model's own completions, a clear rule that judges them, BNF, and a comparison."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path

import torch
from transformers import PreTrainedModel

from preftune.cli.checks import check_seed
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.commands.eval import write_samples
from preftune.data.options import DataOptions
from preftune.data.render import Renderer
from preftune.errors import ConfigError, DataError, check_range
from preftune.model.kernels.products import has_bf16
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.objectives.bnf import BNF
from preftune.progress import Reporter
from preftune.report.page import write_report
from preftune.rewards.judged import Judged, PromptEvaluation, compare_stages, sample_and_judge
from preftune.sampling.sample import SampleOptions, load_sampler
from preftune.stats import json_numbers
from preftune.storage import write_jsonl
from preftune.train.loop import train
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig
from preftune.train.result import RunResult
from preftune.train.runlog import RunFolder, check_output
from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole way in small: sample, reward, tune with BNF, compare before and after on held-out prompts.

    Args:
        output: a new folder.
        overwrite: delete an earlier demo in that folder first.
        model: the model to tune.
        seed: of every draw and order.
        num_prompts: training prompts to use, of those that preftune ships.
        num_held_out: held-out prompts to use.
        learning_rate: peak learning rate.
        epochs: passes over the sampled completions.
        batch_size: prompts per step.
        json: print JSON.
        sampling: how completions are drawn, for training and for the comparison.
    """

    output: str = "preftune-demo"
    overwrite: bool = False
    model: str = "smollm2-135m-instruct"
    seed: int = 0
    num_prompts: int = 192
    num_held_out: int = 96
    learning_rate: float = 2e-6
    epochs: float = 1.0
    batch_size: int = 4
    json: bool = False
    sampling: SampleOptions = field(
        default_factory=lambda: SampleOptions(num_completions=4, max_new_tokens=64, temperature=0.8)
    )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_range(self, "(0, inf)", "epochs", "learning_rate", "batch_size")
        if self.sampling.num_completions < 2:
            raise ConfigError(
                "num_completions is too small for a preference",
                got=self.sampling.num_completions,
                expected="at least 2",
            )


REWARD = "brief"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Where everything is and what came out."""

    run: RunResult
    comparison: PromptEvaluation
    seconds: Mapping[str, float]  # wall time of each part


def demo_prompts(held_out: bool, limit: int) -> list[Record]:
    """The prompts that preftune ships, in their order."""
    lines = (
        resources.files("preftune.commands")
        .joinpath("demo_prompts.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    rows = [row for row in map(json.loads, lines) if row["held_out"] == held_out]
    if not 1 <= limit <= len(rows):
        raise ConfigError(
            f"num_{'held_out' if held_out else 'prompts'} is out of range",
            got=limit,
            expected=f"1 to {len(rows)}",
        )
    return [
        Record(prompt=row["prompt"], completions=(), origin=f"prompts.jsonl:{i}")
        for i, row in enumerate(rows[:limit], 1)
    ]


def best_and_worst(judged: Sequence[Judged]) -> list[dict[str, object]]:
    """Rows {prompt, completions, rewards} of the scored format, for prompts whose completions differ in
    reward.
    """
    rows = []
    for prompt in sorted({one.prompt_index for one in judged}):
        mine = [one for one in judged if one.prompt_index == prompt and one.completion.strip()]
        if len({one.reward for one in mine}) > 1:
            rows.append(
                {
                    "prompt": mine[0].prompt,
                    "completions": [one.completion for one in mine],
                    "rewards": [one.reward for one in mine],
                    "ended": [one.ended for one in mine],
                }
            )
    if not rows:
        raise DataError(
            "No prompt got completions of different rewards", do="Raise num_prompts or num_completions"
        )
    return rows


def demo(config: DemoConfig, report: Reporter) -> DemoResult:
    """Sample, judge, train, compare; the run folder is output/run, the data output/completions.jsonl."""
    output = Path(config.output)
    _clear(output, config.overwrite)
    training, held = demo_prompts(False, config.num_prompts), demo_prompts(True, config.num_held_out)
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    report.note(
        f"1/4  sampling {config.sampling.num_completions} completions of {len(training)} prompts from {config.model}"
    )
    model, renderer = _sampler(config.model)
    clock.lap("load")
    judged = _judge(config, model, renderer, training, "sample", config.seed, report)
    rows = best_and_worst(judged)
    clock.lap("sample")
    report.note(f"     {_summary(judged)}; {len(rows)} prompts have a better and a worse completion")
    report.note(f"2/4  {len(held)} held-out prompts before training")
    before = _judge(config, model, renderer, held, "before", config.seed + 1, report)
    report.note(f"     {_summary(before)}")
    clock.lap("before")
    del model
    _write_lines(output, "completions.jsonl", rows)
    report.note("3/4  training with BNF on the best and the worst completion of each prompt")
    run = train(
        TrainConfig(
            data=str(output / "completions.jsonl"),
            output=str(output / "run"),
            model=config.model,
            objective=BNF(),
            eval_every=5,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            rows=DataOptions(pairing="best_worst"),
            optim=OptimOptions(learning_rate=config.learning_rate),
        ),
        quiet=report.quiet,
    )
    clock.lap("train")
    if run.final is None:
        raise KeyboardInterrupt
    report.note(f"4/4  {len(held)} held-out prompts after training")
    tuned, renderer = _sampler(str(run.final))
    after = _judge(config, tuned, renderer, held, "after", config.seed + 1, report)
    report.note(f"     {_summary(after)}")
    clock.lap("after")
    write_samples(RunFolder(path=run.folder), before, after, run.step)
    write_report(run.folder)
    return DemoResult(run=run, comparison=compare_stages(before, after, REWARD), seconds=seconds)


class _Clock:
    """Wall time between laps, by name."""

    def __init__(self, seconds: dict[str, float]):
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name], self._last = round(now - self._last, 1), now


def _clear(output: Path, overwrite: bool) -> None:
    """Delete an earlier demo on request, and only what a demo writes: a `run` without its data is somebody
    else's.
    """
    if overwrite and (output / "completions.jsonl").is_file():
        (output / "completions.jsonl").unlink()
        shutil.rmtree(output / "run", ignore_errors=True)
    check_output(str(output))


def _sampler(name: str) -> tuple[PreTrainedModel, Renderer]:
    """bf16 where the processor computes in it: the draw is faster, the difference in distribution small."""
    low = torch.cuda.is_available() or has_bf16()
    return load_sampler(name, LoadOptions(), "bf16" if low else "fp32", "auto")


def _judge(config, model, renderer, records, phase, seed, report) -> list[Judged]:
    return sample_and_judge(
        model,
        renderer,
        records,
        config.sampling,
        REWARD,
        seed,
        lambda done, of: report.update(phase, done, of),
    )


def _write_lines(output: Path, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    write_jsonl(output / name, rows, f"write {name}")


def _summary(judged: Sequence[Judged]) -> str:
    num = len(judged)
    reward, ended = sum(one.reward or 0.0 for one in judged) / num, sum(one.ended for one in judged) / num
    length = sum(one.num_tokens for one in judged) / num
    return f"reward {reward:.3f}, {ended:.0%} ended within the budget, {length:.0f} tokens on average"


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(DemoConfig, arguments, "preftune demo")
    result = demo(settings, Reporter(quiet=settings.json))
    if settings.json:
        shown = asdict(result) | {"run": {"folder": str(result.run.folder), "step": result.run.step}}
        print_json(json_numbers(shown))
        return 0
    found = result.comparison
    change, before, after = found.difference, found.before, found.after
    verdict = "the interval excludes zero" if change.excludes_zero else "the interval includes zero"
    print(f"""
reward on held-out prompts   {before.reward.mean:.3f} -> {after.reward.mean:.3f}, \
difference {change.mean:+.3f} (95% {change.low:+.3f} to {change.high:+.3f}; {verdict})
ended within the budget      {before.ended:.0%} -> {after.ended:.0%}
tokens per completion        {before.num_tokens:.0f} -> {after.num_tokens:.0f}
seconds                      {", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items())}

report   {result.run.folder / "report.html"}
chat     preftune chat {result.run.final}""")
    return 0
