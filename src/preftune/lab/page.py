"""The page of the findings: claim, figure, verdict and time of each experiment, in one file that needs
nothing else.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from preftune import report
from preftune.lab.experiments import SWEEP_RATES, SWEPT
from preftune.lab.figure_specs import PICTURES
from preftune.lab.figures import UNITS, drawn, sentence_start, sweep, theory_figures, toy_figure
from preftune.lab.findings import THEORY, TOY, Findings, Tuned
from preftune.storage import whole_file
from preftune.text import value_text

SPREAD = {"curves": "Bands", "points": "Bars"}
FINDINGS_PAGE, VERDICTS = "lab.html", "verdicts.json"


def figures_of(findings: Findings) -> dict[str, list[tuple[str, str]]]:
    """By experiment: (caption, SVG)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for outcome in findings.outcomes:
        name = outcome.id
        if name in THEORY:
            found[name] = [toy_figure()] if name == TOY else list(theory_figures().values())
        elif name in SWEPT:
            measure = SWEPT[name][1]
            over = "after 200 steps, over the learning rate. Bands are 95% intervals over seeds."
            caption = f"{sentence_start(UNITS[measure])}, {over}"
            found[name] = [(caption, sweep(SWEEP_RATES, findings.sweeps[name], measure, name))]
        else:
            found[name] = [
                (
                    f"{panel.caption}: {panel.title}. {SPREAD[panel.kind]} are 95% intervals over seeds.",
                    drawn(panel, findings.tracks, f"{name}-{i + 1}"),
                )
                for i, panel in enumerate(PICTURES.get(name, ()))
            ]
    return found


def write_findings(findings: Findings, rates: Mapping[str, Tuned], folder: Path) -> Path:
    """Writes the page, verdicts.json and the figures one by one; returns the path of the page."""
    figures = figures_of(findings)
    with whole_file(folder / VERDICTS, "write the verdicts") as file:
        content = [outcome.as_dict() for outcome in findings.outcomes]
        file.write_text(
            json.dumps({"seeds": list(findings.seeds), "verdicts": content}, indent=1) + "\n",
            encoding="utf-8",
        )
    for name, entries in figures.items():
        for i, (_, svg) in enumerate(entries):
            with whole_file(
                folder / "figures" / f"{name}{'' if len(entries) == 1 else f'-{i + 1}'}.svg", "write a figure"
            ) as file:
                file.write_text(svg + "\n", encoding="utf-8")
    with whole_file(folder / FINDINGS_PAGE, "write the page") as file:
        file.write_text(_page(findings, rates, figures), encoding="utf-8")
    return folder / FINDINGS_PAGE


def _page(
    findings: Findings, rates: Mapping[str, Tuned], figures: Mapping[str, list[tuple[str, str]]]
) -> str:
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, Path(report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": value_text,
        "svg": Markup,
        "look": lambda verdict: verdict.replace(" ", "-"),
    }
    used = [name for name in rates if name in findings.tracks]
    return environment.get_template("lab.html").render(
        findings=findings,
        counts=Counter(outcome.verdict for outcome in findings.outcomes),
        figures=figures,
        rates={name: rates[name] for name in used},
    )
