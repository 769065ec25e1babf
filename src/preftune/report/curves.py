"""Curves over steps as SVG strings that live inside a page.

A run has some thirty of them. They are written here because matplotlib, which still chooses the ticks, takes
a tenth of a second for each, most of it to lay out ticks and text: for a small run longer than training.
Texts are the page's, as are names, titles and legends, so nothing can be taken for markup.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import Formatter, FuncFormatter, Locator, LogLocator, MaxNLocator, ScalarFormatter

from preftune.report.figures import CHARACTER, FIGURE_SIZE, GRID, LINE, MAX_VALUE, MUTED, STYLE, VARIABLES
from preftune.report.read import Series

MAX_POINTS = 400  # per curve: more than the pixels across
MAX_MARKERS = 30
MIN_SIZE = 1e-290  # below this the arithmetic of a double is coarse; such a value is drawn as 0
_FONT = 9.5  # points, as all lengths here
_MARGIN = 0.05  # of the axis, free on either side of the data
_WIDTH, _HEIGHT = (72 * inches for inches in FIGURE_SIZE)
_TOP, _BOTTOM = LINE, _HEIGHT - 2 * LINE - 6  # of the axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a figure: a faint curve is background to a strong one, marks show where a curve was
    measured.
    """

    series: Series
    color: str
    faint: bool = False
    marked: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Where numbers lie on the page, and which are named."""

    low: float
    high: float
    log: bool
    start: float
    end: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    factor: str  # what all labels are to be multiplied by, as in 1e6; may be empty

    def place(self, values: np.ndarray) -> np.ndarray:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((np.log10(values) if self.log else values) - low) / (high - low)
        return self.start + share * (self.end - self.start)


def curves_figure(
    curves: Sequence[Curve], *, key: str, zero: bool = False, share: bool = False, spread: bool = False
) -> str:
    """Metrics over steps. `zero` draws the line at 0, `share` fixes the axis to 0..1 with a line at one half,
    `spread` lets the axis be logarithmic where the values span more than a factor of 100. `key` names the
    figure on its page.
    """
    lines = [(curve, *thinned(curve.series)) for curve in curves]
    level = 0.5 if share else 0.0 if zero else None
    with mpl.rc_context(STYLE):  # a user's matplotlib settings are for the user's figures
        up = _upward(lines, level, share, spread and _spans_decades(curves))
        left = CHARACTER * max(map(len, up.labels), default=0) + 8
        across = _across([steps for _, steps, _, _, _ in lines], left)
    parts = [*_ground(across, up)]
    if level is not None:
        parts.append(
            _line(
                across.start,
                across.end,
                float(up.place(np.array([level]))[0]),
                MUTED,
                "stroke-dasharray: 2 3",
            )
        )
    for curve, steps, values, low, high in sorted(lines, key=lambda line: not line[0].faint):
        parts += _drawn(curve, across.place(steps), up.place(values), up.place(low), up.place(high))
    return (
        f'<svg aria-hidden="true" focusable="false" id="{key}" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def thinned(series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, means, least and greatest values of at most MAX_POINTS stretches; values that cannot be drawn
    are NaN.
    """
    steps, values = np.asarray(series.steps, dtype=float), np.asarray(series.values, dtype=float)
    values = np.where(np.abs(values) <= MAX_VALUE, values, np.nan)  # infinities and NaN compare false
    if len(values) <= MAX_POINTS:
        return steps, values, values, values
    stretches = [part for part in np.array_split(np.arange(len(values)), MAX_POINTS)]
    # One bad value makes its stretch a gap: a blown-up step must not vanish in a mean of good values.
    rows = [
        (steps[part].mean(), values[part].mean(), values[part].min(), values[part].max())
        for part in stretches
    ]
    middle, mean, low, high = (np.asarray(column) for column in zip(*rows, strict=True))
    return middle, mean, low, high


def drawable(value: float) -> bool:
    return abs(value) <= MAX_VALUE  # false for NaN too


def _spans_decades(curves: Sequence[Curve]) -> bool:
    values = np.asarray([v for curve in curves for v in curve.series.values if drawable(v)])
    return len(values) > 0 and bool(values.min() >= MIN_SIZE) and bool(values.max() > 100 * values.min())


# --- axes ---


def _upward(lines: Sequence[tuple], level: float | None, share: bool, log: bool) -> _Axis:
    values = np.concatenate([np.ravel(numbers) for _, _, *numbers in lines] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if share:
        low, high = -0.03, 1.03
    else:
        values = values if level is None or log else np.append(values, level)
        low, high = _widened(values, log)
    formatter: Formatter = FuncFormatter(lambda value, _: f"{value:g}")
    if not log:
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-3, 5))
    return _axis(
        low, high, log, (_BOTTOM, _TOP), LogLocator(numticks=6) if log else MaxNLocator(nbins=5), formatter
    )


def _across(steps: Sequence[np.ndarray], left: float) -> _Axis:
    low, high = _widened(np.concatenate([*steps, np.zeros(0)]), False)
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    locator = MaxNLocator(nbins=6, integer=True, min_n_ticks=1)
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-3, 7))
    longest = len(f"{high:.0f}") if high < 1e7 else 3
    return _axis(low, high, False, (left, _WIDTH - CHARACTER * longest / 2 - 6), locator, formatter)


def _widened(values: np.ndarray, log: bool) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = (float(bound) for bound in (values.min(), values.max()))
    if log:
        room = 10 ** (_MARGIN * (math.log10(high) - math.log10(low)))
        return low / room, high * room
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < MIN_SIZE:  # one value: around it
        room = _MARGIN * size if size >= MIN_SIZE else _MARGIN
        low, high = low - room, high + room
    return low - _MARGIN * (high - low), high + _MARGIN * (high - low)


def _axis(
    low: float, high: float, log: bool, ends: tuple[float, float], locator: Locator, formatter: Formatter
) -> _Axis:
    for helper in (locator, formatter):
        helper.create_dummy_axis()
        helper.axis.set_view_interval(low, high)  # type: ignore[union-attr]
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]  # type: ignore[attr-defined]
    labels = formatter.format_ticks(ticks)
    return _Axis(
        low=low,
        high=high,
        log=log,
        start=ends[0],
        end=ends[1],
        ticks=tuple(ticks),
        labels=tuple(labels),
        factor=formatter.get_offset(),
    )


# --- what is drawn ---


def _paint(color: str) -> str:
    return f"var({VARIABLES[color]}, {color})"


def _line(x1: float, x2: float, y: float, color: str, more: str = "") -> str:
    style = f"stroke: {_paint(color)}; stroke-width: 0.8" + (f"; {more}" if more else "")
    return f'<path d="M{x1:.2f} {y:.2f}H{x2:.2f}" style="fill: none; {style}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" style="text-anchor: {anchor}">{text}</text>'


def _ground(across: _Axis, up: _Axis) -> Iterator[str]:
    """Grid, ticks and their names."""
    yield from (_line(across.start, across.end, float(place), GRID) for place in up.place(np.array(up.ticks)))
    places, below = across.place(np.array(across.ticks)), _BOTTOM + 4 + _FONT
    marks = "".join(f"M{place:.2f} {_BOTTOM:.2f}v3.5" for place in places)
    base = f"M{across.start:.2f} {_BOTTOM:.2f}H{across.end:.2f}"
    yield f'<path d="{base}{marks}" style="fill: none; stroke: {_paint(GRID)}; stroke-width: 0.8"/>'
    yield f'<g style="font-size: {_FONT}px; fill: {_paint(MUTED)}">'
    yield from (
        _text(across.start - 4, place + _FONT / 3, "end", label)
        for place, label in zip(up.place(np.array(up.ticks)), up.labels, strict=True)
    )
    yield from (
        _text(place, below, "middle", label) for place, label in zip(places, across.labels, strict=True)
    )
    yield _text((across.start + across.end) / 2, below + _FONT + 4, "middle", "step")
    if up.factor:
        yield _text(across.start, _TOP - 5, "start", up.factor)
    if across.factor:
        yield _text(across.end, below + _FONT + 4, "end", across.factor)
    yield "</g>"


def _drawn(curve: Curve, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[str]:
    """The curve, the band between its least and greatest values where it was thinned, and its marks."""
    color, width = _paint(curve.color), 1.2 if curve.faint else 1.8
    known, count = np.flatnonzero(np.isfinite(y)), len(x)
    runs = [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]
    if len(curve.series.steps) > count:
        around = (
            _path(np.append(x[run], x[run][::-1]), np.append(high[run], low[run][::-1])) + "Z" for run in runs
        )
        yield f'<path d="{"".join(around)}" style="fill: {color}; fill-opacity: 0.12"/>'
    faint = "; stroke-opacity: 0.35" if curve.faint else ""
    dashed = f"; stroke-dasharray: {4 * width:g} {2 * width:g}" if curve.dashed else ""
    yield (
        f'<path d="{"".join(_path(x[run], y[run]) for run in runs)}" style="fill: none; stroke: {color}; '
        f'stroke-width: {width}; stroke-linecap: round; stroke-linejoin: round{faint}{dashed}"/>'
    )
    if curve.marked or count == 1:
        marks = known[known % max(1, math.ceil(count / MAX_MARKERS)) == 0]
        circles = "".join(f'<circle cx="{x[mark]:.2f}" cy="{y[mark]:.2f}" r="2.2"/>' for mark in marks)
        yield f'<g style="fill: {color}">{circles}</g>'


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through points; one point alone is a line of no length, which a round cap makes a dot."""
    points = [f"{a:.2f} {b:.2f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return f"M{points[0]}L{' '.join(points[1:] or points)}"
