"""The results of a comparison as a table, a summary and one self-contained page, all from the content of
comparison.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from preftune.race.halving import ALPHA, Place, places
from preftune.report.figures import FIGURE_SIZE, PALETTE, STYLE, VARIABLES, finished_svg
from preftune.report.page import render_page, write_page
from preftune.report.panels import Figure, LegendEntry
from preftune.report.summary import Cell
from preftune.stats import Interval, mean_interval
from preftune.text import interval_text, plural, value_text


@dataclass(frozen=True, kw_only=True)
class RaceRow:
    """A method at the end: its rate, its measure with the 95% interval over seeds, and what the runs took on
    average.
    """

    method: str
    rate: float | None
    mean: Interval | None
    behind: Interval | None  # best - method, paired by seed, at `level`
    level: float | None
    tied: bool
    failed: str | None
    counters: Mapping[str, float]
    kl: float | None


@dataclass(frozen=True, kw_only=True)
class RaceTable:
    """Rows, the best first."""

    title: str  # of what is measured
    rows: tuple[RaceRow, ...]
    summary: str

    @property
    def headings(self) -> list[str]:
        return ["method", "", "learning rate", f"{self.title} (95%)", "behind the best", *self._extras()]

    def _extras(self) -> dict[str, str]:
        """Columns that are not empty: heading -> counter."""
        columns = {"steps": "steps", "samples": "samples_drawn", "seconds": "seconds"}
        found = {
            heading: name
            for heading, name in columns.items()
            if any(row.counters.get(name) for row in self.rows)
        }
        return found | ({"KL": "kl"} if any(row.kl is not None for row in self.rows) else {})

    def cells(self) -> list[list[str]]:
        return [self._cells(row) for row in self.rows]

    def sorted_by(self, row: RaceRow, cells: Sequence[str]) -> list[Cell]:
        """The cells from the learning rate on, with the numbers that their columns are sorted by."""
        extras = {"kl": row.kl, **row.counters}
        numbers = [row.rate, row.mean and row.mean.mean, row.behind and row.behind.mean]
        numbers += [extras.get(name) for name in self._extras().values()]
        return [Cell(text=text, value=value) for text, value in zip(cells[2:], numbers, strict=True)]

    def _cells(self, row: RaceRow) -> list[str]:
        extras = {"kl": row.kl, **row.counters}
        mark = (
            "failed"
            if row.failed
            else "tied best"
            if row.tied and any(one.behind and one.tied for one in self.rows)
            else "best"
            if row.tied
            else ""
        )
        return [
            row.method,
            mark,
            "–" if row.rate is None else f"{row.rate:g}",
            row.failed if row.failed else interval_text(row.mean) if row.mean else "–",
            interval_text(row.behind) if row.behind else "–",
            *(
                "–"
                if (value := extras.get(name)) is None
                else value_text(value)
                if name in ("kl", "seconds")
                else f"{value:,.0f}"
                for name in self._extras().values()
            ),
        ]


def race_table(content: Mapping[str, Any]) -> RaceTable:
    """The final table of all methods, and the summary."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for method, entry in content["methods"].items():
        by_seed = {run["seed"]: run for run in entry["runs"]}
        runs[method] = [by_seed[seed] for seed in content["seeds"] if seed in by_seed]
    ended = places({method: [run["score"] for run in ones] for method, ones in runs.items()})
    rows = tuple(
        _row(place, runs[place.method], content["methods"][place.method]["tuning"]) for place in ended
    )
    return RaceTable(title=content["measure"]["title"], rows=rows, summary=_summary(rows, content))


def _row(place: Place, runs: Sequence[Mapping[str, Any]], tuning: Sequence[Mapping[str, Any]]) -> RaceRow:
    bad = [run for run in runs if run["failed"]]
    failed = None
    if bad:
        failed = f"{len(bad)} of {plural(len(runs), 'run')} failed, seed {bad[0]['seed']} {brief(bad[0]['failed'])}"
    elif not runs:
        failed = f"every learning rate failed in tuning, {tuning[0]['rate']:g} {brief(tuning[0]['failed'])}"
    names = dict.fromkeys(name for run in runs for name in run["counters"])
    kls = [run["measures"]["kl"] for run in runs if "kl" in run["measures"]]
    return RaceRow(
        method=place.method,
        rate=runs[0]["rate"] if runs else None,
        mean=place.mean,
        behind=place.behind,
        level=place.level,
        tied=place.tied,
        failed=failed,
        kl=sum(kls) / len(kls) if kls else None,
        counters={name: sum(run["counters"].get(name, 0.0) for run in runs) / len(runs) for name in names},
    )


def brief(reason: str) -> str:
    """The first sentence of a message; comparison.json holds the rest."""
    return reason.partition(";")[0]


def _summary(rows: Sequence[RaceRow], content: Mapping[str, Any]) -> str:
    """Two or three sentences that can be read alone."""
    title, seeds = content["measure"]["title"], plural(len(content["seeds"]), "seed")
    tied, failed = [row.method for row in rows if row.tied], [row.method for row in rows if row.failed]
    behind = [row.method for row in rows if not row.tied and not row.failed]
    if not tied:
        return "Every method failed: no run at a tuned learning rate ended with a finite score."
    if len(tied) == 1:
        rest = (
            f": its lead over the other methods is significant with {seeds}."
            if behind
            else ", the only method that did not fail."
        )
        first = f"{tied[0]} is best in {title}{rest}"
    else:
        first = f"{_listed(tied)} are tied best in {title}: {seeds} do not separate them."
        first += f" {_listed(behind)} {'is' if len(behind) == 1 else 'are'} behind." if behind else ""
    return first + (f" {_listed(failed)} failed." if failed else "")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def write_race(content: Mapping[str, Any], path: Path) -> Path:
    """The page."""
    return write_page(path, race_page(content))


def race_page(content: Mapping[str, Any]) -> str:
    table = race_table(content)
    drawn = [row.method for row in table.rows if row.mean][: len(PALETTE)]
    colors = dict(zip(drawn, PALETTE, strict=False))
    return render_page(
        "race.html",
        title=f"{plural(len(table.rows), 'method')} on {content['on']}",
        summary=table.summary,
        table=table,
        rows=[
            (row, [*cells[:2], *table.sorted_by(row, cells)])
            for row, cells in zip(table.rows, table.cells(), strict=True)
        ],
        figure=_curves(content, colors),
        facts=_facts(content),
        tuning=_tuning(content),
        level=f"{100 * (1 - ALPHA):g}%",
        measure=content["measure"],
        model=content["model"],
    )


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    budget = content["budget"]
    rungs = ", then ".join(
        f"{rung['rates']} rates with {rung['budget']:g} {budget['unit']}" for rung in content["rungs"]
    )
    return [
        ("budget of each run", f"{budget['amount']:g} {budget['unit']}"),
        ("source", content["source"]),
        ("seeds", ", ".join(map(str, content["seeds"]))),
        ("learning rates", ", ".join(f"{rate:g}" for rate in content["rates"])),
        (
            "tuning",
            f"{rungs} on seed {', '.join(map(str, content['tuning_seeds']))}" if rungs else "none: one rate",
        ),
    ]


def _tuning(content: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """For each method, what each rate came to in each round."""
    found = []
    for method, entry in content["methods"].items():
        cells = []
        for rung in content["rungs"]:
            tried: dict[float, list[float | None]] = {}
            for run in entry["tuning"]:
                if run["share"] == rung["share"]:
                    tried.setdefault(run["rate"], []).append(run["score"])
            cells.append(
                "; ".join(f"{rate:g}: {_mean_text(scores)}" for rate, scores in tried.items()) or "–"
            )
        found.append((method, cells))
    return found


def _mean_text(scores: Sequence[float | None]) -> str:
    known = [score for score in scores if score is not None]
    return value_text(sum(known) / len(known)) if known and len(known) == len(scores) else "failed"


# --- curves ---


def mean_curve(curves: Sequence[Sequence[Sequence[float]]], axis: int) -> list[tuple[float, Interval]]:
    """From the curves of the seeds, as (step, samples, value), (place on the axis, mean with its interval) at
    the steps that all of them have, and at their ends.
    """
    shared = set.intersection(*({int(point[0]) for point in curve} for curve in curves))
    ends = [curve[-1] for curve in curves]
    rows = [
        [next(point for point in curve if point[0] == step) for curve in curves] for step in sorted(shared)
    ]
    if any(int(end[0]) not in shared for end in ends):
        rows = [*(row for row in rows if row[0][0] < min(end[0] for end in ends)), ends]
    return [(sum(p[axis] for p in row) / len(row), mean_interval([p[2] for p in row])) for row in rows]


def _curves(content: Mapping[str, Any], colors: Mapping[str, str]) -> Figure | None:
    """The measure over steps, or over samples where these are the budget, of the methods in `colors`."""
    by_samples = content["budget"]["unit"] == "samples"
    curves = {
        method: mean_curve(of, 1 if by_samples else 0)
        for method in colors
        if (of := [run["curve"] for run in content["methods"][method]["runs"] if run["curve"]])
    }
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    axis = "samples drawn" if by_samples else "step"
    ends = "; ".join(f"{name} ends at {value_text(curve[-1][1].mean)}" for name, curve in curves.items())
    return Figure(
        title=content["measure"]["title"][0].upper() + content["measure"]["title"][1:],
        unit=content["measure"]["unit"],
        svg=_drawn({colors[name]: curve for name, curve in curves.items()}, axis),
        legend=tuple(
            LegendEntry(label=name, look="line", variable=VARIABLES[colors[name]]) for name in curves
        ),
        meaning=f"{content['measure']['meaning']} Mean over seeds; the band is its 95% interval.",
        alternative=f"Curves of the {content['measure']['title']} over {axis}: {ends}.",
    )


def _drawn(curves: Mapping[str, Sequence[tuple[float, Interval]]], axis: str) -> str:
    with mpl.rc_context(STYLE):
        figure = Drawing(figsize=(1.5 * FIGURE_SIZE[0], 1.3 * FIGURE_SIZE[1]), layout="constrained")
        axes = figure.subplots()
        means = [one.mean for curve in curves.values() for _, one in curve]
        spread = max(max(means) - min(means), 1e-9)
        for color, curve in curves.items():
            x, low, high = (
                [place for place, _ in curve],
                [one.low for _, one in curve],
                [one.high for _, one in curve],
            )
            axes.fill_between(x, np.asarray(low), np.asarray(high), color=color, alpha=0.12, linewidth=0)
            axes.plot(
                x, [one.mean for _, one in curve], color=color, linewidth=1.8, marker="o", markersize=3.5
            )
        # Bands of two or three seeds may be many times wider than all that the means show.
        axes.set_ylim(
            max(axes.get_ylim()[0], min(means) - spread), min(axes.get_ylim()[1], max(means) + spread)
        )
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        return finished_svg(figure, "race")
