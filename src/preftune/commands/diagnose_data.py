"""`preftune diagnose data`: what a data set can teach a model, and what is wrong with it, before
training.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from preftune.cli.checks import check_new_file, check_seed, refuse_idle_rows
from preftune.cli.model_settings import ModelSettings
from preftune.cli.output import make_console, make_table, print_json, print_line
from preftune.cli.settings import parse_settings
from preftune.data.column_account import column_lines
from preftune.data.data_report import census_lines
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.data.render import Renderer, make_renderer
from preftune.diagnosis.data_findings import findings
from preftune.diagnosis.data_measures import DataMeasures, evidence
from preftune.diagnosis.data_model import measure_own
from preftune.diagnosis.data_rows import measure_rows, read
from preftune.diagnosis.data_verdicts import bounds_used, count_verdicts
from preftune.diagnosis.sample_findings import coverage_case
from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.model.layout import LayoutOptions
from preftune.model.load import load_on_device, load_tokenizer, resolve_model
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.rewards import AnyReward, resolve_reward
from preftune.sampling.sample import SampleOptions
from preftune.stats import json_numbers
from preftune.storage import new_file, write_json
from preftune.terminal import clean_terminal
from preftune.text import percent, plural, value_text

FEW = 20  # prompts, below which a t interval is hardly narrower than the differences that it should show
_STYLES = {"good": "green", "check": "yellow", "fix": "bold red"}
_WITHOUT_MODEL = "off-policy, noise of the labels, the reward's peak, lengths in tokens: no --model was given"
_READING = ("split", "format", "columns", "bad_rows", "pairing", "min_gap", "max_rows")


@dataclass(frozen=True, kw_only=True)
class DiagnoseDataConfig(ModelSettings):
    """What a data set can teach a model: how near it is to what the model writes, and what is wrong with it.

    Args:
        data: preference data: a file, a folder or a hub id.
        model: the model to be trained; without a model, only what needs none is measured.
        reward: a built-in reward, module:function or a weighted sum, to find where its peak is;
            docs/rewards.md lists them.
        held_out: data of the same layout; its prompts and rows that are also in `data` are counted.
        max_prompts: number of prompts to sample for, drawn by the seed from all of the data.
        samples: own completions of each prompt.
        max_new_tokens: token limit of an own completion; the data's are compared up to the same number of tokens.
        output: file for everything as JSON.
        overwrite: replace the output if it exists.
        seed: seed of the choice of prompts, the samples and the folds.
        rows: how data files become groups of tokens; unusable rows are counted and are no error.
        layout: how groups are laid out for the model.
    """

    data: str
    model: str | None = None
    reward: str | None = None
    held_out: str | None = None
    max_prompts: int = 64
    samples: int = 4
    max_new_tokens: int = 128
    output: str | None = None
    overwrite: bool = False
    rows: DataOptions = field(default_factory=lambda: DataOptions(bad_rows="skip"))
    layout: LayoutOptions = field(default_factory=LayoutOptions)

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "max_prompts", "max_new_tokens")
        check_range(self, "[2, inf)", "samples")
        check_seed(self.seed)
        if self.output is not None and (not self.output or Path(self.output).is_dir()):
            raise ConfigError(
                "output is the file of the diagnosis", got=repr(self.output), expected="a file's name"
            )
        if self.output is not None:
            check_new_file(self.output, self.overwrite)
        if self.output is None:
            refuse_idle(self, "without an output", "overwrite", do="Leave it out, or add --output FILE")
        refuse_idle(self.rows, "on a diagnosis", "soft_label_temperature", prefix="rows.")
        if self.model is None:
            refuse_idle_rows(replace(self.rows, bad_rows="error"), _READING, "texts without a model")
            idle = {
                "reward",
                "max_prompts",
                "samples",
                "max_new_tokens",
                "seed",
                "precision",
                "device",
                "layout",
                "loading",
            }
            names = [option.name for option in fields(self) if option.name in idle]
            refuse_idle(self, "without a model", *names, do="Add --model, or leave it out")


def diagnose_data(settings: DiagnoseDataConfig, report: Reporter) -> DataMeasures:
    """All measures of the data that the settings allow."""
    reward: tuple[str, AnyReward] | None = None
    renderer: Renderer | None = None
    source = ""
    if settings.model is not None:
        source = resolve_model(settings.model)
        renderer = make_renderer(load_tokenizer(source, settings.loading), settings.rows, many=True)
    if settings.reward is not None:
        reward = settings.reward, resolve_reward(settings.reward)
    rows = read(settings.data, settings.rows, renderer)
    for line in (*column_lines(rows.loaded.columns), *census_lines(rows.loaded.census)):
        report.note(line)
    held = load_records(settings.held_out, settings.rows) if settings.held_out is not None else None
    found = measure_rows(settings.data, rows, renderer, held, settings.model, settings.reward)
    left_out = [] if held else ["leakage: no --held_out was given"]
    if not found.num_pairs:
        left_out.append("everything about chosen and rejected completions: the data give no pairs")
    if renderer is None:
        return replace(found, left_out=(_WITHOUT_MODEL, *left_out))
    model = load_on_device(source, settings.loading, settings.precision, settings.device)
    options = SampleOptions(num_completions=settings.samples, max_new_tokens=settings.max_new_tokens)
    own, missing = measure_own(
        rows,
        model,
        renderer,
        reward,
        options,
        max_prompts=settings.max_prompts,
        seed=settings.seed,
        precision=settings.precision,
        layout=settings.layout,
        report=report,
    )
    return replace(found, own=own, left_out=(*missing, *left_out))


def diagnosis_json(found: DataMeasures, settings: DiagnoseDataConfig) -> dict[str, object]:
    """Everything, for other programs; `evidence` has stable names."""
    used = (
        None
        if found.own is None
        else {
            "prompts": found.own.num_prompts,
            "samples": found.own.num_samples,
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
        }
    )
    return json_numbers(
        {
            "source": found.source,
            "model": found.model,
            "reward": found.reward,
            "used": used,
            "evidence": evidence(found),
            "findings": [asdict(one) for one in findings(found)],
            "coverage": coverage_case(found.own) if found.own else None,
            "measures": asdict(found),
            "thresholds": bounds_used(),
            "left_out": list(found.left_out),
        }
    )


def tell(found: DataMeasures, console: Console) -> None:
    """The diagnosis for a terminal."""

    line = partial(print_line, console)
    counts = [
        f"{plural(found.num_records, 'row')} of {found.num_rows:,}",
        plural(found.num_prompts, "prompt"),
        plural(found.num_pairs, "pair"),
        f"{value_text(found.completions_per_prompt)} completions per prompt",
        f"{value_text(found.completion_length)} {found.unit} each",
    ]
    line(f"{found.source}: {', '.join(counts)}")
    for reason, count in found.dropped.items():
        line(f"{count:,} not used, {reason}", "dim")
    if found.own is not None:
        asked = f"{plural(found.own.num_prompts, 'prompt')} of {found.num_prompts:,}, {found.own.num_samples} samples each"
        line(
            f"{found.model} sampled for {asked}"
            + "; with this few prompts, intervals are wide" * (found.own.num_prompts < FEW)
        )
        if found.own.beyond_budget:
            line(
                f"{percent(found.own.beyond_budget)} of the data's completions are longer than max_new_tokens: they are compared "
                "with own samples up to this limit, and a reward that depends on the limit scores them as too long"
            )
    told_findings = findings(found)
    rows = [
        (one.name, one.measured, Text(one.verdict, style=_STYLES[one.verdict]), one.meaning)
        for one in told_findings
    ]
    console.print()
    console.print(make_table(("finding", "measured", "verdict", "meaning"), rows, unbroken=("verdict",)))
    console.print()
    if found.own is not None and (case := coverage_case(found.own)):
        line(case)
    line(", ".join(f"{count} {verdict}" for verdict, count in count_verdicts(told_findings).items() if count))
    for what in found.left_out:
        line(f"not measured: {what}", "dim")


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(DiagnoseDataConfig, arguments, "preftune diagnose data", positional="data")
    with ExitStack() as stack:
        if settings.output is not None:
            stack.enter_context(new_file(settings.output, settings.overwrite))
        found = diagnose_data(settings, Reporter(quiet=settings.json))
        content = diagnosis_json(found, settings)
        if settings.output is not None:
            write_json(Path(settings.output), content, "write the diagnosis")
    if settings.json:
        print_json(content)
        return 0
    tell(found, make_console())
    if settings.output is not None:
        print(clean_terminal(settings.output))
    return 0
