"""On-policy BNF in small: the model's own completions, a reward with simple rules, and a comparison on held-out
prompts.
"""

import json
import shutil
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from preftune.cli.checks import check_seed
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.commands.eval import write_samples
from preftune.data.render import Renderer
from preftune.data.repetition import distinct_pairs, is_repetitive
from preftune.errors import ConfigError, check_range
from preftune.model.kernels.products import has_bf16
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.objectives.bnf import BNF
from preftune.progress import Reporter
from preftune.report.page import write_report
from preftune.rewards.judged import Judged, PromptEvaluation, compare_stages, sample_and_judge
from preftune.rewards.short_answer import GOOD
from preftune.sampling.sample import SampleOptions, load_sampler
from preftune.stats import json_numbers
from preftune.storage import write_jsonl
from preftune.terminal import clean_terminal
from preftune.train.loop import train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig
from preftune.train.result import RunResult
from preftune.train.runlog import RunFolder, check_output
from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """On-policy training with BNF for complete, short answers, and a comparison on held-out prompts.

    Args:
        output: a new folder.
        overwrite: delete an earlier demo in that folder first.
        model: the model to tune.
        seed: of every draw and order.
        steps: optimizer steps; each draws new completions.
        num_held_out: held-out prompts to use.
        learning_rate: peak learning rate.
        batch_size: prompts per step.
        json: print JSON.
        sampling: how completions are drawn in training; at the comparison, two of each prompt.
    """

    output: str = "preftune-demo"
    overwrite: bool = False
    model: str = "smollm2-135m-instruct"
    seed: int = 0
    steps: int = 20
    num_held_out: int = 48
    learning_rate: float = 3e-5
    batch_size: int = 4
    json: bool = False
    sampling: SampleOptions = field(
        default_factory=lambda: SampleOptions(
            num_completions=8, max_new_tokens=48, temperature=0.8, sample_batch=32
        )
    )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_range(self, "(0, inf)", "learning_rate")
        check_range(self, "[1, inf)", "steps", "batch_size")
        if self.sampling.num_completions < 2:
            raise ConfigError(
                "num_completions is too small for a preference",
                got=self.sampling.num_completions,
                expected="at least 2",
            )


REWARD = "short_answer"
SHOWN = 3  # prompts whose answers are printed
LINE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Degeneration:
    """Signs that a model repeats itself."""

    repetitive: float  # share of completions
    distinct_2: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Where everything is and what came out."""

    run: RunResult
    comparison: PromptEvaluation  # by the reward
    good: PromptEvaluation  # by whether the reward is GOOD or more
    degeneration: Mapping[str, Degeneration]  # before and after
    first: tuple[tuple[Judged, Judged], ...]  # the first sample of the first prompts, before and after
    seconds: Mapping[str, float]  # wall time of each part


def demo_prompts(held_out: bool, limit: int | None = None) -> list[Record]:
    """The prompts that preftune ships, in their order."""
    lines = (
        resources.files("preftune.commands")
        .joinpath("demo_prompts.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    rows = [row for row in map(json.loads, lines) if row["held_out"] == held_out]
    limit = len(rows) if limit is None else limit
    if not 1 <= limit <= len(rows):
        raise ConfigError("num_held_out is out of range", got=limit, expected=f"1 to {len(rows)}")
    return [
        Record(prompt=row["prompt"], completions=(), origin=f"prompts.jsonl:{i}")
        for i, row in enumerate(rows[:limit], 1)
    ]


def demo(config: DemoConfig, report: Reporter) -> DemoResult:
    """Evaluate, train, evaluate; the run folder is output/run, its prompts output/prompts.jsonl."""
    output = Path(config.output)
    _clear(output, config.overwrite)
    held = demo_prompts(True, config.num_held_out)
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    report.note(
        f"1/3  {config.model} answers {len(held)} held-out prompts, at most {config.sampling.max_new_tokens} tokens each"
    )
    before = _judge(config, _sampler(config.model), held, "before", report)
    report.note(f"     {_summary(before)}")
    clock.lap("before")
    report.note(
        f"2/3  {config.steps} steps of BNF: {config.batch_size} prompts with "
        f"{config.sampling.num_completions} new completions each; BNF trains on the best and the worst"
    )
    run = _train(config, output, report)
    clock.lap("train")
    if run.final is None:
        raise KeyboardInterrupt
    report.note(f"3/3  the trained model answers the {len(held)} held-out prompts")
    after = _judge(config, _sampler(str(run.final)), held, "after", report)
    report.note(f"     {_summary(after)}")
    clock.lap("after")
    write_samples(RunFolder(path=run.folder), before, after, run.step)
    write_report(run.folder)
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0].sample_index == 0]
    return DemoResult(
        run=run,
        comparison=compare_stages(before, after, REWARD),
        good=compare_stages(_good(before), _good(after), f"{REWARD} >= {GOOD:g}"),
        degeneration={"before": _degeneration(before), "after": _degeneration(after)},
        first=tuple(pairs[:SHOWN]),
        seconds=seconds,
    )


def _train(config: DemoConfig, output: Path, report: Reporter) -> RunResult:
    """On-policy BNF on the best and the worst completion of each prompt."""
    prompts = demo_prompts(False)
    write_jsonl(output / "prompts.jsonl", [{"prompt": one.prompt} for one in prompts], "write the prompts")

    def told(row: Mapping[str, Any]) -> None:
        detail = f"reward {row['collect/reward']:.2f}, {row['completions/ended']:.0%} complete, "
        detail += f"{row['completions/length']:.0f} tokens"
        report.update("train", row["step"], config.steps, detail)

    report.update("train", 0, config.steps)
    return train(
        TrainConfig(
            source="on-policy",
            data=str(output / "prompts.jsonl"),
            reward=REWARD,
            output=str(output / "run"),
            model=config.model,
            objective=BNF(),
            eval_fraction=0.0,
            batch_size=config.batch_size,
            max_steps=config.steps,
            seed=config.seed,
            sampling=config.sampling,
            collect=CollectOptions(selection="best-vs-worst"),
            optim=OptimOptions(learning_rate=config.learning_rate),
        ),
        quiet=True,
        on_step=told,
    )


class _Clock:
    """Wall time between laps, by name."""

    def __init__(self, seconds: dict[str, float]):
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name], self._last = round(now - self._last, 1), now


def _clear(output: Path, overwrite: bool) -> None:
    """Delete an earlier demo on request, and only what a demo writes: a `run` without its prompts is somebody
    else's.
    """
    if overwrite and (output / "prompts.jsonl").is_file():
        (output / "prompts.jsonl").unlink()
        shutil.rmtree(output / "run", ignore_errors=True)
    check_output(str(output))


def _sampler(name: str) -> tuple[PreTrainedModel, Renderer]:
    """bf16 where the processor computes in it: the draw is faster, the difference in distribution small."""
    low = torch.cuda.is_available() or has_bf16()
    return load_sampler(name, LoadOptions(), "bf16" if low else "fp32", "auto")


def _judge(
    config: DemoConfig,
    sampler: tuple[PreTrainedModel, Renderer],
    records: Sequence[Record],
    phase: str,
    report: Reporter,
) -> list[Judged]:
    """Two completions of each prompt, with the same random numbers before and after."""
    return sample_and_judge(
        *sampler,
        records,
        replace(config.sampling, num_completions=2),
        REWARD,
        config.seed + 1,
        lambda done, of: report.update(phase, done, of),
    )


def _good(judged: Sequence[Judged]) -> list[Judged]:
    """With 1 for a complete answer on the question as reward, and 0 for others."""
    return [replace(one, reward=float((one.reward or 0.0) >= GOOD)) for one in judged]


def _degeneration(judged: Sequence[Judged]) -> Degeneration:
    texts = [one.completion for one in judged]
    return Degeneration(
        repetitive=sum(map(is_repetitive, texts)) / len(texts), distinct_2=distinct_pairs(texts)
    )


def _summary(judged: Sequence[Judged]) -> str:
    num = len(judged)
    good, ended = (
        sum(one.reward or 0.0 for one in _good(judged)) / num,
        sum(one.ended for one in judged) / num,
    )
    length = sum(one.num_tokens for one in judged) / num
    return f"{good:.0%} good answers, {ended:.0%} complete, {length:.0f} tokens on average"


def _shown(pair: tuple[Judged, Judged]) -> str:
    """A prompt with its answers before and after, for a terminal."""
    lines = [pair[0].prompt]
    for stage, one in zip(("before", "after"), pair, strict=True):
        text = " ".join(one.completion.split()) + ("" if one.ended else " [cut off]")
        lines += textwrap.wrap(
            clean_terminal(text), 100, initial_indent=f"  {stage:<8}", subsequent_indent=" " * 10
        )
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(DemoConfig, arguments, "preftune demo")
    result = demo(settings, Reporter(quiet=settings.json, line_seconds=LINE_SECONDS))
    if settings.json:
        shown = asdict(result) | {"run": {"folder": str(result.run.folder), "step": result.run.step}}
        print_json(json_numbers(shown))
        return 0
    good, change = result.good, result.good.difference
    first, last = result.degeneration["before"], result.degeneration["after"]
    verdict = "the interval excludes zero" if change.excludes_zero else "the interval includes zero"
    samples = "\n\n".join(map(_shown, result.first))
    print(f"""
{samples}

good answers         {good.before.reward.mean:.0%} -> {good.after.reward.mean:.0%}, difference \
{100 * change.mean:+.0f} points (95% {100 * change.low:+.0f} to {100 * change.high:+.0f}; {verdict})
complete             {good.before.ended:.0%} -> {good.after.ended:.0%}
tokens               {good.before.num_tokens:.0f} -> {good.after.num_tokens:.0f}
repetitive           {first.repetitive:.0%} -> {last.repetitive:.0%}
distinct-2           {first.distinct_2:.2f} -> {last.distinct_2:.2f}
seconds              {", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items())}

report   {result.run.folder / "report.html"}
chat     preftune chat {result.run.final}""")
    return 0
