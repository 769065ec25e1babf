"""Histograms as SVG strings that live inside a page, and what all figures of pages have in common.

Nothing from outside is written into a figure: titles, legends and names are the page's, so no text can be
taken for mathtext or markup. Colors are CSS variables with a fallback, so that a figure follows the light or
dark page.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, GRID = "#23262b", "#6a707a", "#e1e4e8"
PALETTE = ("#2463c9", "#c8501e", "#178a5e", "#8a4fbf", "#a87a08", "#0b8299", "#c2417c", "#5f6b2d")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    color: f"--series-{index + 1}" for index, color in enumerate(PALETTE)
}

FIGURE_SIZE = (4.5, 2.7)  # inches; small, since a phone shows the figure at three quarters of its size
MAX_VALUE = 1e30  # beyond this matplotlib's own arithmetic overflows; such a value is drawn as a gap
CHARACTER, LINE = 6.2, 15.0  # points of a character and of a line of text
MAX_LEVELS = 12  # of a reward that takes few values: one bar each instead of bins

STYLE: dict[Any, Any] = {  # matplotlib types the keys as a closed set of literals
    "svg.fonttype": "none",
    "svg.hashsalt": "preftune",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "text.color": MUTED,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


def histogram_figure(before: Sequence[float], after: Sequence[float], *, key: str) -> str:
    """The share of samples at each reward, before in grey and after in color; either may be empty."""
    groups = [(np.asarray(before, dtype=float), MUTED), (np.asarray(after, dtype=float), PALETTE[0])]
    groups = [(np.clip(values, -MAX_VALUE, MAX_VALUE), color) for values, color in groups if len(values)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=FIGURE_SIZE)
        axes = figure.subplots()
        values = np.concatenate([values for values, _ in groups]) if groups else np.zeros(1)
        levels = np.unique(values)
        for index, (group, color) in enumerate(groups):
            if len(levels) <= MAX_LEVELS:
                width = 0.8 / len(groups)
                heights = [(group == level).mean() for level in levels]
                places = np.arange(len(levels)) + (index - (len(groups) - 1) / 2) * width
                axes.bar(places, heights, width=width * 0.92, color=color)
            else:
                edges = np.linspace(levels[0], levels[-1], 21)
                heights = np.histogram(group, bins=edges)[0] / len(group)
                axes.stairs(heights, edges, color=color, fill=True, alpha=0.25)
                axes.stairs(heights, edges, color=color, linewidth=1.6)
        if len(levels) <= MAX_LEVELS:
            axes.set_xticks(range(len(levels)), [f"{level:.3g}".replace("-", "−") for level in levels])
        axes.set_xlabel("reward")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        _leave_room(axes)
        return finished_svg(figure, key)


def _leave_room(axes: Axes) -> None:
    """Margins for the labels, by their number of characters.

    matplotlib's own layouts measure every text, most of the time that a figure takes, in a font that is not
    the page's.
    """
    width, height = (72 * inches for inches in FIGURE_SIZE)
    across, up = (
        axis.get_major_formatter().format_ticks(axis.get_majorticklocs().tolist())
        for axis in (axes.xaxis, axes.yaxis)
    )
    left, right = CHARACTER * max(map(len, up), default=0) + 8, CHARACTER * len(across[-1]) / 2 + 6
    figure: Any = axes.figure
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=(2 * LINE + 6) / height, top=1 - LINE / height
    )


def finished_svg(figure: Figure, key: str) -> str:
    """The figure as an `<svg>` element: no prologue, no metadata, ids that start with `key`, the page's own
    font.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*>", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), svg, count=1)
    svg = short_paths(svg)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable}, {color})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1).strip()


def short_paths(svg: str) -> str:
    """Hundredths of a point are finer than any screen, and the long decimals would be most of the file."""
    return re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
