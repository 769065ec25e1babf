"""Derivative curves as one figure: a panel for each objective."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from preftune.catalogue.curves import CurveSet, DerivativeCurves
from preftune.report.figures import GRID, INK, MUTED, PALETTE, STYLE, short_paths
from preftune.storage import whole_file

MAX_COLUMNS = 8
PAGE_WIDTH = 13.6  # inches, of the panels when there are all columns
LEGEND_WIDTH = 4.2  # inches, as the least width of all panels together
LEFT, ABOVE, MARGIN_BELOW = 0.75, 0.62, 0.62  # inches around the panels
DOTS = (0, (2, 2))
PREFERRED, DISPREFERRED = PALETTE[0], PALETTE[1]  # blue and orange, which color-blind readers can distinguish
WHAT = {"logit": "the token's logit", "logp": "the token's log-probability"}


def write_figure(found: CurveSet, path: Path) -> Path:
    """Draws the curves, sorted by name; the file's suffix selects the format. Whole or not at all."""
    undated: dict[str, Any] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
        ".png": {"Software": None},
    }
    with whole_file(path, "write the figure") as file, mpl.rc_context({**STYLE, "font.size": 9}):
        _drawn(found).savefig(file, dpi=150, metadata=undated[path.suffix.lower()], facecolor="white")
        if path.suffix.lower() == ".svg":
            file.write_text(short_paths(file.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def _drawn(found: CurveSet) -> Figure:
    count = len(found.curves)
    columns = min(MAX_COLUMNS, count)
    rows = math.ceil(count / columns)
    width = max(min(3.2, PAGE_WIDTH / columns), LEGEND_WIDTH / columns)
    height = 0.8 * width
    across, down = LEFT + columns * width, ABOVE + rows * height + MARGIN_BELOW
    figure = Figure(figsize=(across, down))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    # Computed here: matplotlib's layout of some eighty panels takes longer than their curves.
    figure.subplots_adjust(
        left=LEFT / across,
        right=1 - 0.1 / across,
        top=1 - ABOVE / down,
        bottom=MARGIN_BELOW / down,
        wspace=0.16,
        hspace=0.36,
    )
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    for panel, name in zip(panels.flat, sorted(found.curves), strict=False):
        _draw(panel, found, found.curves[name])
        panel.set_title(name, color=INK, fontsize=9.5, pad=3)
    for column in range(columns):  # the last panel of each column, which need not be in the last row
        panels[(count - 1 - column) // columns, column].tick_params(labelbottom=True)
    middle = (LEFT + across) / 2 / across
    figure.text(
        middle, 0.1 / down, "probability of the token", ha="center", va="bottom", fontsize=10, color=MUTED
    )
    pushed = f"push on {WHAT[found.quantity]}" + ("\n" if rows == 1 else " ") + "(largest of the panel: 1)"
    figure.text(
        0.05 / across,
        (MARGIN_BELOW + rows * height / 2) / down,
        pushed,
        ha="left",
        va="center",
        fontsize=10,
        color=MUTED,
        rotation=90,
        multialignment="center",
    )
    looks = [
        (PREFERRED, 2, "-", "preferred"),
        (DISPREFERRED, 2, "-", "dispreferred"),
        (MUTED, 1, DOTS, f"reference, {found.ref_prob:g}"),
    ]
    lines = [
        Line2D([], [], color=c, linewidth=w, linestyle=style, label=label) for c, w, style, label in looks
    ]
    figure.legend(
        handles=lines,
        loc="upper center",
        bbox_to_anchor=(middle, 1.0),
        frameon=False,
        labelcolor=INK,
        fontsize=10,
        ncols=3,
    )
    return figure


def _draw(panel: Axes, found: CurveSet, curves: DerivativeCurves) -> None:
    """Both curves divided by the larger one's largest absolute value, so that shapes can be compared across
    panels.
    """
    largest = max(map(abs, (*curves.preferred, *curves.dispreferred))) or 1.0
    panel.axhline(0.0, color=MUTED, linewidth=0.8, zorder=1)
    panel.axvline(found.ref_prob, color=MUTED, linewidth=1, linestyle=DOTS, zorder=1)
    for values, color in ((curves.preferred, PREFERRED), (curves.dispreferred, DISPREFERRED)):
        (line,) = panel.plot(
            found.probabilities, [value / largest for value in values], color=color, linewidth=1.8, zorder=3
        )
        line.get_path().should_simplify = True  # which matplotlib does by itself from 128 points on
    panel.set(xlim=(0, 1), ylim=(-1.1, 1.1), xticks=[0, 0.5, 1], yticks=[-1, 0, 1])
    panel.set_xticklabels(["0", "0.5", "1"])
    panel.tick_params(labelsize=8, length=2, color=GRID)
