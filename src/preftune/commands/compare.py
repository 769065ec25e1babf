"""The command `compare`: methods under an equal budget, each tuned, on several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.cli.output import print_json, print_table
from preftune.cli.settings import parse_settings
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.race.options import CompareConfig
from preftune.race.report import RaceTable, race_table
from preftune.race.run import COMPARISON, COMPARISON_PAGE, compare
from preftune.terminal import clean_terminal


def _tell(config: CompareConfig, table: RaceTable, content: Mapping[str, Any]) -> None:
    print_table(table.headings, table.cells())
    print(table.summary)
    lines = [
        f"page    {Path(config.output) / COMPARISON_PAGE}",
        f"numbers {Path(config.output) / COMPARISON}",
    ]
    if content["model"] is not None:
        lines.append(f"model   {Path(config.output) / content['model']}")
    print(clean_terminal("\n".join(lines)))


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(CompareConfig, arguments, "preftune compare")
    report = Reporter(quiet=settings.json)
    try:
        content = compare(settings, report)
    except KeyboardInterrupt:
        report.note(
            f"\nInterrupted. Nothing is lost: the same command goes on with what is in {settings.output}"
        )
        raise
    if settings.json:
        print_json(content)
    else:
        _tell(settings, race_table(content), content)
    return 0
