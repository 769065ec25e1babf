"""What each verb does: settings in, work done by the rooms, results printed."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from preftune.cli.main import print_json
from preftune.cli.settings import parse_settings, settings_from_run
from preftune.data.inspect import inspect_data
from preftune.data.render import make_renderer
from preftune.commands.demo import demo
from preftune.errors import ConfigError, ServerError, storage_error
from preftune.commands.eval import PairEvaluation, PromptEvaluation, evaluate_pairs, evaluate_prompts, load_prompts
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.sampling.engine import choose_engine
from preftune.sampling.sample import Sampled, SampleOptions, load_sampler, sample
from preftune.sampling.server import sample_server
from preftune.model.load import load_tokenizer, quiet_transformers, resolve_model
from preftune.report.page import write_comparison, write_report
from preftune.stats import Interval, finite
from preftune.terminal import clean_terminal
from preftune.train.dry_run import dry_run
from preftune.train.loop import RunResult, resume, train
from preftune.train.options import TrainConfig
from preftune.train.processes import Processes, together
from preftune.progress import Reporter
from preftune.types import Message, Record
from preftune.cli.checks import DemoConfig, EvalConfig, InspectConfig, ReportConfig, SampleConfig


def run_train(arguments: Sequence[str]) -> int:
    """`train`: a new run, or `--resume RUN` to go on with one; under torchrun by all of its processes together."""
    quiet_transformers()
    as_json, rehearses = "--json" in arguments, not {"--dry-run", "--dry_run"}.isdisjoint(arguments)
    words = [word for word in arguments if word not in ("--json", "--dry-run", "--dry_run")]
    if words and words[0].partition("=")[0] == "--resume":
        folder = words[0].partition("=")[2] or (words[1] if len(words) > 1 else "")
        extra = words[1:] if "=" in words[0] else words[2:]
        if not folder or extra or rehearses:
            raise ConfigError("--resume takes a run folder and nothing else", got=" ".join(arguments),
                              expected="preftune train --resume RUN",
                              do="The run goes on with the settings in its config.yaml")  # fmt: skip
        if not (Path(folder) / "config.yaml").is_file():
            raise ConfigError(f"{folder} is not a run folder", got="no config.yaml in it", expected="what --output made")
        settings = replace(settings_from_run(TrainConfig, Path(folder)), output=folder)  # the folder may have moved
        start = resume
    else:
        settings = parse_settings(
            TrainConfig, words, prog="preftune train",
            description="Tune a model on preferences. `--resume RUN` goes on with one; `--dry-run` tells what it will cost.",
        )
        start = train
    with together(settings.process_minutes) as processes:
        if rehearses:
            return _rehearse(settings, as_json, processes)
        result = start(settings, quiet=as_json, processes=processes)
        if processes.is_main:
            _tell_run(result, as_json, writes=not isinstance(settings.objective, BradleyTerry))
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
        print_json({"folder": str(result.folder), "final": result.final and str(result.final), "step": result.step,
                    "state": result.state, "evaluation": dict(result.evaluation)})  # fmt: skip
    elif result.final:
        lines = [f"model   {result.final}", f"report  {result.folder / 'report.html'}"]
        lines += [f"try it  preftune sample --model {result.final}"] if writes else []
        print(clean_terminal("\n".join(lines)))


def run_inspect(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(InspectConfig, arguments, prog="preftune inspect", positional="data",
                              description="What is in a data file, as a model's tokeniser sees it.")  # fmt: skip
    tokenizer = load_tokenizer(resolve_model(settings.model), settings.loading)
    found = inspect_data(settings.data, tokenizer, settings.rows)
    if settings.json:
        print_json(found.as_dict())
        return 0
    console = Console(highlight=False)
    for line in found.lines():
        console.print(Text(clean_terminal(line)), soft_wrap=True)
    for text in found.samples(settings.examples):
        console.print()
        console.print(text, soft_wrap=True)
    return 0


def run_sample(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(SampleConfig, arguments, prog="preftune sample",
                              description="Completions of a model; without a prompt, a chat.")  # fmt: skip
    report = Reporter(quiet=settings.json or settings.prompt is not None)
    records: Sequence[Record] = []
    if settings.prompt is not None:
        records = [Record(prompt=settings.prompt, completions=(), origin="--prompt")]
    elif settings.prompts is not None:
        records = load_prompts(settings.prompts, settings.rows, report)
    draw = _drawing(settings, report)
    if not records:
        return _chat(settings, draw)
    _tell_samples(settings, records, draw(records, settings.seed, lambda done, of: report.update("sample", done, of)))
    return 0


def _drawing(settings: SampleConfig, report: Reporter) -> Callable[..., list[list[Sampled]]]:
    """A function of records, seed and progress that draws from the server or in this process."""
    if not settings.server.url:
        model, renderer = load_sampler(
            settings.model, settings.loading, settings.precision, settings.device, settings.rows.template
        )
        engine, reason = choose_engine(model)
        if reason:
            report.note(f"prompts are {engine} for every completion: {reason}")
        return lambda records, seed, progress: sample(
            model, renderer, [renderer.render(record).prompt for record in records], settings.sampling, seed, progress,
            engine=engine,
        )  # fmt: skip
    renderer = make_renderer(load_tokenizer(resolve_model(settings.model), settings.loading), settings.rows.template)
    journal = _journal_of(settings)
    if journal is not None and journal.exists():
        report.note(f"going on with what {journal} holds")

    def draw(records: Sequence[Record], seed: int, progress: Callable[[int, int], None]) -> list[list[Sampled]]:
        try:
            return sample_server(settings.server, renderer, records, settings.sampling, seed, progress, journal=journal)
        except ServerError:
            if journal is not None and journal.exists():
                report.note(f"what was drawn is kept in {journal}; the same command goes on from it")
            raise

    return draw


def _journal_of(settings: SampleConfig) -> Path | None:
    return None if settings.output is None or not settings.server.url else Path(f"{settings.output}.journal")


def sample_rows(
    records: Sequence[Record], drawn: Sequence[Sequence[Sampled]], options: SampleOptions
) -> list[dict[str, object]]:
    """A row for each prompt, as rewards and training read it."""
    return [
        {**record.columns, "prompt": record.prompt if isinstance(record.prompt, str) else [asdict(m) for m in record.prompt],
         "completions": [one.text for one in ones], "ended": [one.ended for one in ones],
         "num_tokens": [len(one.token_ids) for one in ones], "budget": options.max_new_tokens}
        for record, ones in zip(records, drawn, strict=True)
    ]  # fmt: skip


def _tell_samples(settings: SampleConfig, records: Sequence[Record], drawn: Sequence[Sequence[Sampled]]) -> None:
    rows = sample_rows(records, drawn, settings.sampling)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if settings.output is not None:
        try:
            Path(settings.output).write_text(lines, encoding="utf-8")
        except OSError as error:
            raise storage_error("write the samples", settings.output, error) from error
        if (journal := _journal_of(settings)) is not None:
            journal.unlink(missing_ok=True)
        print(clean_terminal(f"{len(rows)} prompts with {settings.sampling.num_completions} completions each in {settings.output}"))
    elif settings.json:
        print("".join(json.dumps(row) + "\n" for row in rows), end="")
    else:
        for row, ones in zip(rows, drawn, strict=True):
            if len(rows) > 1:
                print(f"# {clean_terminal(str(row['prompt']))}")
            for one in ones:
                print(clean_terminal(one.text) + ("" if one.ended else " [cut off by max_new_tokens]"))


def _chat(settings: SampleConfig, draw: Callable[..., list[list[Sampled]]]) -> int:
    """Turn by turn on standard input; an empty line or the end of the input closes it."""
    print("chat: write and press Enter; an empty line ends it", file=sys.stderr)
    turns: list[Message] = []
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return 0
        turns.append(Message(role="user", content=line))
        record = Record(prompt=tuple(turns), completions=(), origin="chat")
        [[answer, *_]] = draw([record], settings.seed + len(turns), lambda done, of: None)
        print(clean_terminal(answer.text), flush=True)
        turns.append(Message(role="assistant", content=answer.text))


def run_eval(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(EvalConfig, arguments, prog="preftune eval",
                              description="How good a model is, on preference data or on prompts.")  # fmt: skip
    report = Reporter(quiet=settings.json)
    if settings.data is not None:
        pairs = evaluate_pairs(settings, report)
        if settings.json:
            print_json(finite(pairs))
        else:
            _tell_pairs(pairs)
    else:
        prompts = evaluate_prompts(settings, report)
        if settings.json:
            print_json(finite(prompts))
        else:
            _tell_prompts(prompts)
    return 0


def _tell_pairs(found: PairEvaluation) -> None:
    table = Table("quantity", "mean", "95% interval", title=f"{found.num_pairs} pairs, beta {found.beta:g}")
    for name, interval in found.intervals.items():
        table.add_row(name, f"{interval.mean:.4f}", _span(interval))
    Console().print(table)


def _tell_prompts(found: PromptEvaluation) -> None:
    table = Table("", "reward", "95% interval", "ended", "tokens", title=f"{found.num_prompts} prompts, reward {found.reward}")
    for name, stage in (("reference", found.before), ("model", found.after)):
        table.add_row(name, f"{stage.reward.mean:.4f}", _span(stage.reward), f"{stage.ended:.0%}", f"{stage.num_tokens:.0f}")
    table.add_row("difference", f"{found.difference.mean:+.4f}", _span(found.difference), "", "")
    Console().print(table)


def _span(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"


def run_report(arguments: Sequence[str]) -> int:
    words = list(arguments)
    bare = []
    while words and not words[0].startswith("-"):
        bare.append(words.pop(0))
    runs = ["--runs", json.dumps(bare)] if bare else []
    settings = parse_settings(ReportConfig, [*runs, *words], prog="preftune report",
                              description="Draw the page of a run again, or of several: preftune report RUN [RUN ...]")  # fmt: skip
    folders = [Path(run) for run in settings.runs]
    page = write_comparison(folders, Path(settings.output)) if settings.output else write_report(folders[0])
    print_json({"page": str(page)}) if settings.json else print(clean_terminal(str(page)))
    return 0


def run_demo(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(DemoConfig, arguments, prog="preftune demo",
                              description="The whole way in small, in a few minutes.")  # fmt: skip
    result = demo(settings, Reporter(quiet=settings.json))
    if settings.json:
        shown = asdict(result) | {"run": {"folder": str(result.run.folder), "step": result.run.step}}
        print_json(finite(shown))
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
chat     preftune sample --model {result.run.final}""")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": run_demo, "inspect": run_inspect, "train": run_train, "sample": run_sample, "eval": run_eval, "report": run_report,
}  # fmt: skip
