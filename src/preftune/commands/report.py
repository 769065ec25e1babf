"""The command `report`: draw the page of a run again, or compare several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.cli.checks import name_bare_words
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.progress import Reporter
from preftune.report.page import write_comparison, write_report
from preftune.report.read import read_run
from preftune.storage import new_file, write_jsonl
from preftune.terminal import clean_terminal


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw the page of a run again, or of several over one another.

    Args:
        runs: run folders.
        output: the page of several runs.
        answers: for one run: sample answers of the initial and the tuned model to this many held-out prompts, and
            show them on the page.
        max_new_tokens: tokens of an answer at most.
        overwrite: replace the output, or answers that are there already.
        json: print the path as JSON.
    """

    runs: list[str]
    output: str | None = None
    answers: int = 0
    max_new_tokens: int = 128
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError(
                "report wants a run folder", got="none", expected="preftune report RUN [RUN ...]"
            )
        if len(self.runs) > 1 and self.output is None:
            raise ConfigError(
                "Several runs need a separate page", got="no output", do="Add --output FILE.html"
            )
        check_range(self, "[0, inf)", "answers")
        check_range(self, "[1, inf)", "max_new_tokens")
        if not self.answers:
            refuse_idle(self, "without answers", "max_new_tokens", do="Add --answers 8")
        elif len(self.runs) > 1:
            refuse_idle(self, "for several runs", "answers", do="Add answers to each run first")
        if len(self.runs) == 1:
            refuse_idle(self, "for one run", "output", do="Its page is RUN/report.html")


def add_answers(folder: Path, settings: ReportConfig) -> None:
    """Write samples.jsonl of a run."""
    from preftune.diagnosis.answers import answer_rows  # imports torch: only for answers
    from preftune.diagnosis.run_material import find_runs
    from preftune.model.whole_model import quiet_transformers

    path = folder / "samples.jsonl"
    if path.exists() and not settings.overwrite:
        raise ConfigError(f"{path} is there already", do="Add --overwrite to replace these answers")
    quiet_transformers()
    (run,), step = find_runs([str(folder)]), read_run(folder).last_step
    report = Reporter(quiet=settings.json)
    write_jsonl(
        path, answer_rows(run, step, settings.answers, settings.max_new_tokens, report), "write the answers"
    )


def _facts_of(objective: object) -> Mapping[str, str]:
    """Facts of the objective of a run that did not write them down."""
    from preftune.objectives.remedies import facts_of_settings  # imports torch: only for such runs

    return facts_of_settings(objective) if isinstance(objective, dict) else {}


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(ReportConfig, name_bare_words(arguments, "runs"), "preftune report")
    folders = [Path(run) for run in settings.runs]
    if settings.output:
        with new_file(settings.output, settings.overwrite) as output:
            page = write_comparison(folders, output)
    else:
        if settings.answers:
            add_answers(folders[0], settings)
        page = write_report(folders[0], _facts_of)
    print_json({"page": str(page)}) if settings.json else print(clean_terminal(str(page)))
    return 0
