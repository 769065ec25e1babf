"""The command `sample`: completions of a prompt or of a file of prompts, or a chat."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preftune.cli.checks import READING_OPTIONS, check_seed, refuse_idle_rows
from preftune.cli.model_settings import ModelSettings
from preftune.cli.settings import parse_settings
from preftune.commands.chat import Answer, Partner, hold_chat
from preftune.data.carried import load_prompts_to_answer
from preftune.data.render import make_renderer
from preftune.environments.base import RolloutOptions
from preftune.environments.checks import check_environment, check_tool_columns
from preftune.environments.drawers import local_drawer, server_drawer
from preftune.environments.files import rollout_rows
from preftune.environments.resolve import resolve_environment
from preftune.environments.rollout import OUTCOMES, make_rollouts
from preftune.errors import ConfigError, ServerError, refuse_idle
from preftune.model.load import load_tokenizer, resolve_model
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.sampling.client import ServerOptions
from preftune.sampling.engine import choose_engine
from preftune.sampling.prefix import PrefixOptions, beginnings, behind, with_beginnings
from preftune.sampling.sample import SampleOptions, check_prompt_room, load_sampler, sample
from preftune.sampling.sampled import Sampled
from preftune.sampling.server import sample_server
from preftune.storage import new_file, write_jsonl
from preftune.terminal import clean_terminal
from preftune.types import Message, Record


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ModelSettings):
    """Completions of a model: of one prompt, of a file of prompts, or in a chat when neither is given.

    Args:
        model: a run's final/ folder, or any name that `train` takes; with a server, the model whose tokenizer
            and template its model has.
        prompt: one prompt.
        prompts: a data file; only its prompts are used.
        output: write JSON lines {prompt, completions, ended, num_tokens, budget, the other columns of the
            prompts} here instead of printing. With a server or an environment, finished completions are kept in
            a journal next to this file until all are finished, and the same command continues from the journal.
        overwrite: replace the output if it exists.
        json: print JSON lines.
        sampling: how completions are drawn.
        prefix: a beginning that completions continue from; it is part of their text.
        rollout: an environment that answers the model between its turns, and limits. Completions are then lists of
            turns, and the column rewards holds what the environment gives.
        server: draw from an OpenAI-compatible server instead of in this process.
    """

    model: str = "smollm2-135m-instruct"
    prompt: str | None = None
    prompts: str | None = None
    output: str | None = None
    overwrite: bool = False
    sampling: SampleOptions = field(default_factory=SampleOptions)
    prefix: PrefixOptions = field(default_factory=PrefixOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    server: ServerOptions = field(default_factory=ServerOptions)

    def __post_init__(self) -> None:
        if self.server.url:
            url = f"server.url {self.server.url}"
            refuse_idle(self, "on a server", "precision", "device", got=url)
            refuse_idle(self.sampling, "on a server", "sample_batch", prefix="sampling.", got=url)
        if self.prompt is not None and self.prompts is not None:
            raise ConfigError("prompt and prompts exclude each other", got="both", expected="one of them")
        if self.prompts is None:
            refuse_idle(self, "without prompts", "output", do="Add --prompts FILE")
            refuse_idle(self.prefix, "without prompts", "column", prefix="prefix.", do="Add --prompts FILE")
        if self.output is None:
            refuse_idle(self, "without an output", "overwrite")
        if self.prompt is None and self.prompts is None:
            add = "Add --prompt TEXT or --prompts FILE"
            refuse_idle(self, "in a chat", "json", got="neither prompt nor prompts", do=add)
            refuse_idle(self.sampling, "in a chat", "num_completions", do=add)
            refuse_idle(self.rollout, "in a chat", "environment", prefix="rollout.", do=add)
        check_environment(self.rollout, self.sampling, self.prefix)
        check_seed(self.seed)
        if self.prompts is None:
            refuse_idle_rows(self.rows, ("template",), "a prompt that is typed")
        else:
            refuse_idle_rows(self.rows, READING_OPTIONS, "prompts")


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(SampleConfig, arguments, "preftune sample")
    with ExitStack() as stack:
        if settings.output is not None:  # refused before anything is loaded
            stack.enter_context(new_file(settings.output, settings.overwrite))
        return _run(settings)


def _run(settings: SampleConfig) -> int:
    report = Reporter(quiet=settings.json or settings.prompt is not None)
    records: Sequence[Record] = []
    if settings.prompt is not None:
        records = [Record(prompt=settings.prompt, completions=(), origin="--prompt")]
    elif settings.prompts is not None:
        records = _prompts(settings, report)
    if settings.rollout.environment is not None:
        _tell_rollouts(settings, rolled_rows(settings, records, report))
        return 0
    draw = _drawing(settings, report)
    if not records:
        return hold_chat({"": _partner(draw)}, settings.seed, None)
    _tell_samples(
        settings, records, draw(records, settings.seed, lambda done, of: report.update("sample", done, of))
    )
    return 0


def _prompts(settings: SampleConfig, report: Reporter) -> list[Record]:
    assert settings.prompts is not None
    return load_prompts_to_answer(settings.prompts, settings.rows, settings.sampling.num_completions, report)


def _partner(draw: Callable[..., list[list[Sampled]]]) -> Partner:
    """Answers one turn at a time, whole."""

    def answer(turns: Sequence[Message], seed: int, show: Callable[[str], None]) -> Answer | None:
        record = Record(prompt=tuple(turns), completions=(), origin="chat")
        [answers] = draw([record], seed, lambda done, of: None)
        if answers:
            show(answers[0].text)
        return Answer(text=answers[0].text, ended=answers[0].ended) if answers else None

    return answer


def _drawing(settings: SampleConfig, report: Reporter) -> Callable[..., list[list[Sampled]]]:
    """A function of records, seed and progress that draws from the server or in this process."""
    if not settings.server.url:
        model, renderer = load_sampler(
            settings.model, settings.loading, settings.precision, settings.device, settings.rows
        )
        engine, reason = choose_engine(model)
        if reason:
            report.note(f"prompts are {engine} for every completion: {reason}")

        def draw_here(
            records: Sequence[Record], seed: int, progress: Callable[[int, int], None]
        ) -> list[list[Sampled]]:
            given = beginnings(renderer, records, settings.prefix)
            prompts = behind([renderer.render(record).prompt for record in records], given)
            drawn = sample(model, renderer, prompts, settings.sampling, seed, progress, engine=engine)
            return with_beginnings(drawn, given, renderer)

        return draw_here
    renderer = make_renderer(load_tokenizer(resolve_model(settings.model), settings.loading), settings.rows)
    journal = _journal_of(settings)
    if journal is not None and journal.exists():
        report.note(f"going on with what {journal} holds")

    def draw(
        records: Sequence[Record], seed: int, progress: Callable[[int, int], None]
    ) -> list[list[Sampled]]:
        given = beginnings(renderer, records, settings.prefix)
        try:
            drawn = sample_server(
                settings.server,
                renderer,
                records,
                settings.sampling,
                seed,
                progress,
                given=given,
                journal=journal,
                note=report.note,
            )
            return with_beginnings(drawn, given, renderer)
        except ServerError:
            if journal is not None and journal.exists():
                report.note(
                    f"finished completions are kept in {journal}; the same command continues from there"
                )
            raise

    return draw


def _journal_of(settings: SampleConfig) -> Path | None:
    kept = settings.output is not None and (settings.server.url or settings.rollout.environment is not None)
    return Path(f"{settings.output}.journal") if kept else None


def rolled_rows(settings: SampleConfig, records: Sequence[Record], report: Reporter) -> list[dict[str, Any]]:
    """A row for each prompt, with its rollouts in the environment."""
    assert settings.rollout.environment is not None
    named = resolve_environment(settings.rollout.environment)  # before anything is loaded
    check_tool_columns(named, records)
    sampling, server = settings.sampling, settings.server
    if server.url:
        source = resolve_model(settings.model)
        renderer = make_renderer(load_tokenizer(source, settings.loading), settings.rows)
        drawer, at_once = server_drawer(server, renderer, sampling, settings.seed), server.concurrency
    else:
        model, renderer = load_sampler(
            settings.model, settings.loading, settings.precision, settings.device, settings.rows
        )
        prompts = [renderer.render(record).prompt for record in records]
        check_prompt_room(model, prompts, [settings.rollout.total_tokens] * len(prompts))
        engine, _ = choose_engine(model)
        drawer = local_drawer(model, renderer, sampling, settings.seed, engine)
        at_once = sampling.sample_batch
    rollouts = make_rollouts(named, settings.rollout, renderer, sampling.max_new_tokens, settings.model)
    aside = ("prompts", "output", "overwrite", "json")  # nothing follows from these
    kept = {name: value for name, value in asdict(settings).items() if name not in aside}
    journal = _journal_of(settings)
    if journal is not None and journal.exists():
        report.note(f"going on with what {journal} holds")
    return rollout_rows(
        rollouts,
        drawer,
        records,
        sampling.num_completions,
        settings.seed,
        max(1, at_once // sampling.num_completions),
        kept,
        journal,
        lambda done, of: report.update("sample", done, of),
    )


def sample_rows(
    records: Sequence[Record], drawn: Sequence[Sequence[Sampled]], options: SampleOptions
) -> list[dict[str, object]]:
    """A row for each prompt, as rewards and training read it."""
    return [
        {
            **record.columns,
            **record.template_columns(),
            "prompt": record.prompt
            if isinstance(record.prompt, str)
            else [m.as_dict() for m in record.prompt],
            "completions": [one.text for one in ones],
            "ended": [one.ended for one in ones],
            "num_tokens": [one.num_scored for one in ones],
            "budget": options.max_new_tokens,
        }
        for record, ones in zip(records, drawn, strict=True)
        if ones  # a server may withhold every completion of a prompt
    ]


def sampled_rows(settings: SampleConfig, report: Reporter) -> list[dict[str, Any]]:
    """The rows that the command would write, for a program."""
    if settings.prompt is not None:
        records: Sequence[Record] = [Record(prompt=settings.prompt, completions=(), origin="prompt")]
    elif settings.prompts is not None:
        records = _prompts(settings, report)
    else:
        raise ConfigError("sample needs prompts", got="none", expected="prompt or prompts")
    if settings.rollout.environment is not None:
        return rolled_rows(settings, records, report)
    drawn = _drawing(settings, report)(
        records, settings.seed, lambda done, of: report.update("sample", done, of)
    )
    return sample_rows(records, drawn, settings.sampling)


def _tell_samples(
    settings: SampleConfig, records: Sequence[Record], drawn: Sequence[Sequence[Sampled]]
) -> None:
    rows = sample_rows(records, drawn, settings.sampling)
    if settings.output is not None:
        write_jsonl(Path(settings.output), rows, "write the samples")
        if (journal := _journal_of(settings)) is not None:
            journal.unlink(missing_ok=True)
        print(
            clean_terminal(
                f"{len(rows)} prompts with {settings.sampling.num_completions} completions each in {settings.output}"
            )
        )
    elif settings.json:
        print("".join(json.dumps(row) + "\n" for row in rows), end="")
    else:
        for row, ones in zip(rows, drawn, strict=True):
            if len(rows) > 1:
                print(f"# {clean_terminal(str(row['prompt']))}")
            for one in ones:
                print(clean_terminal(one.text) + ("" if one.ended else " [cut off by max_new_tokens]"))


def _tell_rollouts(settings: SampleConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    if settings.output is not None:
        write_jsonl(Path(settings.output), rows, "write the rollouts")
        journal = _journal_of(settings)
        assert journal is not None
        journal.unlink(missing_ok=True)
        outcomes = Counter(outcome for row in rows for outcome in row["ended_by"])
        told = "; ".join(f"{count} {outcome}: {OUTCOMES[outcome]}" for outcome, count in outcomes.items())
        print(
            clean_terminal(
                f"{len(rows)} prompts with {settings.sampling.num_completions} rollouts each in {settings.output} "
                f"({told})"
            )
        )
    elif settings.json:
        print("".join(json.dumps(row) + "\n" for row in rows), end="")
    else:
        for row in rows:
            for turns, outcome in zip(row["completions"], row["ended_by"], strict=True):
                print(f"# {clean_terminal(str(row['prompt']))}")
                print(clean_terminal("\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)))
                print(f"[{OUTCOMES[outcome]}]")
