"""`diagnose run`: what training did to the model of one or more runs, as numbers, as tokens and as a page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.diagnosis.run_material import DiagnoseRunConfig
from preftune.diagnosis.runs import diagnose_runs
from preftune.errors import ConfigError, memory_errors
from preftune.model.load import quiet_transformers
from preftune.progress import Reporter
from preftune.report.diagnosis import interval, summary, write_diagnosis
from preftune.report.read import TOKENS
from preftune.storage import whole_file
from preftune.terminal import clean_terminal
from preftune.text import interval_text, percent
from preftune.train.runlog import check_output

NUMBERS = "diagnosis.json"
PIPED_WIDTH = 1000  # characters: where there is no terminal to fit, a run is one line


def run(arguments: Sequence[str]) -> int:
    """`preftune diagnose run RUN [RUN ...] --output FOLDER`."""
    quiet_transformers()
    words, bare = list(arguments), []
    while words and not words[0].startswith("-"):
        bare.append(words.pop(0))
    runs = ["--runs", json.dumps(bare)] if bare else []
    settings = parse_settings(
        DiagnoseRunConfig,
        [*runs, *words],
        prog="preftune diagnose run",
        description="Where runs moved probability: preftune diagnose run RUN [RUN ...] --output FOLDER",
    )
    folder = Path(settings.output)
    _check_folder(settings.output)
    report = Reporter(quiet=settings.json)
    try:
        with memory_errors():
            content, tokens = diagnose_runs(settings, report)
    finally:
        report.close()
    with whole_file(folder / TOKENS, "write the tokens") as file:
        file.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tokens),
            encoding="utf-8",
            errors="replace",
        )
    with whole_file(folder / NUMBERS, "write the diagnosis") as file:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    page = write_diagnosis(content, folder)
    if settings.json:
        print_json(content)
    else:
        _tell(content, page)
    return 0


def _check_folder(output: str) -> None:
    """Before any work. The sentence of training speaks of resuming, which means nothing here."""
    path = Path(output)
    if output and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"The output {output} is there already",
            expected="a new or empty folder",
            do="Choose another --output",
        )
    check_output(output)


def _tell(content: Mapping[str, Any], page: Path) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in (
        "run",
        "side",
        "log-ratio per token",
        "|logit shift| per token",
        "Gini",
        "both fall",
        "KL to reference",
    ):
        table.add_column(heading, overflow="fold")
    for run in content["runs"]:
        for side, numbers in run["sides"].items():
            first, found = side == "chosen", numbers["intervals"]
            cells = [
                run["name"] if first else "",
                side,
                *(
                    interval_text(interval(found[name]))
                    for name in ("mean_log_ratio", "mean_logit_shift", "gini")
                ),
            ]
            cells.append(percent(run["directions"]["both_fall"]["mean"]) if first else "")
            drawn = first and run["samples"]
            cells.append(
                interval_text(interval(run["samples"]["policy"]["intervals"]["log_ratio"])) if drawn else ""
            )
            table.add_row(*(Text(clean_terminal(cell)) for cell in cells))
    console.print(table)
    for line in (
        *summary(content)[len(content["runs"]) :],
        "",
        f"{page} shows it; {NUMBERS} and {TOKENS} lie beside it.",
    ):
        console.print(Text(clean_terminal(line)), soft_wrap=True)
