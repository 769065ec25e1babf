"""The figures of a diagnosis, as SVG inside a page. As in figures.py, no text from outside is written into
them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from preftune.report.figures import FIGURE_SIZE, INK, MUTED, PALETTE, STYLE, finished_svg
from preftune.stats import Interval

SIDE_COLOURS = {"chosen": PALETTE[0], "rejected": PALETTE[1]}
PALE = 0.45  # opacity of a rejected bar next to the chosen bar of its run


def reach_of(runs: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> tuple[float, float]:
    """The largest |log-ratio| and logit shift of all runs' points, with a little room: so that scatters share
    their axes.
    """
    points = np.array([point for run in runs for side in run.values() for point in side], dtype=float)
    most = np.abs(points).max(0) * 1.05
    return float(most[0]) or 1.0, float(most[1]) or 1.0


def scatter_figure(
    points: Mapping[str, Sequence[Sequence[float]]], reach: tuple[float, float], *, key: str
) -> str:
    """One point per completion: log-ratio against logit shift, both per token; chosen and rejected in two
    colors.
    """

    def fill(axes: Axes) -> None:
        for side, ones in points.items():
            x, y = np.array(ones, dtype=float).T
            axes.scatter(x, y, s=12, color=SIDE_COLOURS[side], alpha=0.6, linewidths=0)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.set_xlim(-reach[0], reach[0])
        axes.set_ylim(0, reach[1])
        axes.set_xlabel("log-ratio per token, nats")
        axes.set_ylabel("|logit shift| per token")

    return _drawn(fill, key)


def tokens_figure(
    shares: Mapping[str, Sequence[float]], edges: Sequence[float], top: float, *, key: str
) -> str:
    """The share of tokens by their log-ratio; a logarithmic axis, since most tokens hardly move."""

    def fill(axes: Axes) -> None:
        for side, ones in shares.items():
            heights = np.where(np.array(ones) > 0, ones, np.nan)
            axes.stairs(heights, edges, color=SIDE_COLOURS[side], linewidth=1.6)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.set_yscale("log")
        axes.set_ylim(1e-5, top)
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_xlabel("log-ratio of a token, nats")

    return _drawn(fill, key)


def bars_figure(intervals: Sequence[Mapping[str, Interval]], *, key: str) -> str:
    """For each run a bar per side, the rejected one pale, with its interval where there is one."""

    def fill(axes: Axes) -> None:
        for place, sides in enumerate(intervals):
            for offset, (side, one) in zip((-0.2, 0.2), sides.items(), strict=True):
                color = PALETTE[place]
                axes.bar(
                    place + offset, one.mean, width=0.36, color=color, alpha=1.0 if side == "chosen" else PALE
                )
                if one.num > 1:
                    axes.vlines(place + offset, one.low, one.high, color=INK, linewidth=1.2)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xticks([])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-3, 5))
        axes.yaxis.set_major_formatter(formatter)

    return _drawn(fill, key)


def _drawn(fill: Any, key: str) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        fill(figure.subplots())
        return finished_svg(figure, key)
