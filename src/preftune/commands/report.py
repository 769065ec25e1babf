"""The command `report`: draw the page of a run again, or compare several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.cli.checks import name_bare_words
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, refuse_idle
from preftune.report.page import write_comparison, write_report
from preftune.storage import new_file
from preftune.terminal import clean_terminal


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw the page of a run again, or of several over one another.

    Args:
        runs: run folders.
        output: the page of several runs.
        overwrite: replace the output if it exists.
        json: print the path as JSON.
    """

    runs: list[str]
    output: str | None = None
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
        if len(self.runs) == 1:
            refuse_idle(self, "for one run", "output", do="Its page is RUN/report.html")


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
        page = write_report(folders[0], _facts_of)
    print_json({"page": str(page)}) if settings.json else print(clean_terminal(str(page)))
    return 0
