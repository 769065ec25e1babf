"""`diagnose run`: what training did to the model of one or more runs, as numbers, as tokens and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.cli.checks import name_bare_words
from preftune.cli.output import make_console, make_table, print_json, print_line
from preftune.cli.settings import parse_settings
from preftune.diagnosis.run_material import DiagnoseRunConfig
from preftune.diagnosis.runs import diagnose_runs
from preftune.errors import ConfigError, memory_errors
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.report.diagnosis import interval, summary, write_diagnosis
from preftune.report.read import TOKENS
from preftune.storage import locked_folder, write_json, write_jsonl
from preftune.text import interval_text, percent
from preftune.train.runlog import check_output

DIAGNOSIS_FILE = "diagnosis.json"


def run(arguments: Sequence[str]) -> int:
    """`preftune diagnose run RUN [RUN ...] --output FOLDER`."""
    quiet_transformers()
    settings = parse_settings(DiagnoseRunConfig, name_bare_words(arguments, "runs"), "preftune diagnose run")
    content, page = write_run_diagnosis(settings, Reporter(quiet=settings.json))
    if settings.json:
        print_json(content)
    else:
        _tell(content, page)
    return 0


def write_run_diagnosis(settings: DiagnoseRunConfig, report: Reporter) -> tuple[dict[str, Any], Path]:
    """(the content of diagnosis.json, the page), both written to the output folder."""
    folder = Path(settings.output)
    _check_folder(settings.output)
    try:
        with memory_errors("Lower --layout.micro_batch_tokens or --rows.max_length"), locked_folder(folder):
            content, tokens = diagnose_runs(settings, report)
    finally:
        report.close()
    write_jsonl(folder / TOKENS, tokens, "write the tokens")
    write_json(folder / DIAGNOSIS_FILE, content, "write the diagnosis", indent=1)
    page = write_diagnosis(content, folder)
    return content, page


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
    console = make_console()
    headings = (
        "run",
        "side",
        "log-ratio per token",
        "|logit shift| per token",
        "Gini",
        "both fall",
        "KL to reference",
    )
    rows = []
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
            rows.append(cells)
    console.print(make_table(headings, rows))
    for line in (
        *summary(content)[len(content["runs"]) :],
        "",
        f"{page} shows it; {DIAGNOSIS_FILE} and {TOKENS} lie beside it.",
    ):
        print_line(console, line)
