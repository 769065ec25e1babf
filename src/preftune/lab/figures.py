"""Figures of the laboratory as SVG: curves over steps with their intervals, numbers with their intervals, and
the theory.

Colors are those of the report, which color-blind readers can distinguish, and every curve has a marker of
its own too.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preftune.lab import theory
from preftune.lab.criteria import series_of
from preftune.lab.loop import Track
from preftune.report.figures import GRID, INK, MUTED, PALETTE, STYLE, short_paths
from preftune.stats import mean_interval

FIGURE_WIDTH = 4.8  # inches; a phone shows the figure at two thirds of its size
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
LOOK: dict[Any, Any] = {
    **STYLE,
    "font.size": 9,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
UNITS = {
    "return": "expected reward",
    "length": "expected length, tokens",
    "distance": "expected distance to the mode, tokens",
    "log_ratio/best": "log-ratio of the best completion, nats",
    "margin": "log-ratio, best less others, nats",
    "entropy": "entropy, nats",
    "kl": "KL(policy || reference), nats",
}
COUNT_LABELS = {
    "grad_steps": "gradient steps",
    "reward_queries": "reward queries",
    "samples_drawn": "samples drawn",
}


def sentence_start(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is drawn of some runs: curves of a measure, or its last values. `labels` name the runs in the
    legend.
    """

    title: str
    runs: tuple[str, ...]
    labels: tuple[str, ...]
    kind: Literal["curves", "points"] = "curves"
    measure: str = "return"
    over: Literal["grad_steps", "reward_queries", "samples_drawn"] = "grad_steps"
    log: bool = False

    @property
    def caption(self) -> str:
        what = sentence_start(UNITS[self.measure])
        return f"{what}, over {COUNT_LABELS[self.over]}" if self.kind == "curves" else f"{what}, at the end"


def drawn(picture: Picture, tracks: Mapping[str, Track], key: str) -> str:
    """Means over seeds with 95% intervals."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        if picture.kind == "curves":
            _curves(axes, picture, tracks)
            _legend(figure, picture.labels)
        else:
            _points(axes, picture, tracks)
        axes.set_title(picture.title, fontsize=9.5, color=INK, loc="left")

    rows = 0.22 * math.ceil(len(picture.labels) / _columns(picture.labels))
    return as_svg(
        fill, (FIGURE_WIDTH, 3.0 + rows if picture.kind == "curves" else 1.0 + 0.26 * len(picture.runs)), key
    )


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    """Below the axes: next to them it would take a phone's width from them, within them it would lie on
    curves.
    """
    figure.legend(
        loc="outside lower left",
        ncols=_columns(labels),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        columnspacing=1.2,
    )


def _columns(labels: Sequence[str]) -> int:
    """As many as fit, and rows of like length."""
    longest = max(map(len, labels))
    most = 4 if longest <= 10 else 3 if longest <= 16 else 2
    return math.ceil(len(labels) / math.ceil(len(labels) / most))


def _curves(axes: Axes, picture: Picture, tracks: Mapping[str, Track]) -> None:
    for i, (name, label) in enumerate(zip(picture.runs, picture.labels, strict=True)):
        track, color = tracks[name], PALETTE[i % len(PALETTE)]
        across = np.asarray(track.counters[picture.over], dtype=float)
        intervals = [mean_interval(values) for values in series_of(track, picture.measure)]
        axes.fill_between(
            across,
            [one.low for one in intervals],
            [one.high for one in intervals],
            color=color,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(
            across,
            [one.mean for one in intervals],
            color=color,
            linewidth=1.7,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markevery=(i, max(len(picture.runs), len(across) // 6)),
            label=label,
        )
    if picture.log:
        axes.set_xscale("log")
    axes.set(xlabel=COUNT_LABELS[picture.over], ylabel=UNITS[picture.measure])


def _points(axes: Axes, picture: Picture, tracks: Mapping[str, Track]) -> None:
    for i, name in enumerate(picture.runs):
        one = mean_interval(series_of(tracks[name], picture.measure)[-1])
        axes.plot([one.low, one.high], [-i, -i], color=PALETTE[0], linewidth=2.2, solid_capstyle="butt")
        axes.plot([one.mean], [-i], marker="o", color=PALETTE[0], markersize=5)
    axes.set_yticks([-i for i in range(len(picture.runs))], picture.labels)
    axes.set(xlabel=UNITS[picture.measure], ylim=(-len(picture.runs) + 0.4, 0.6))
    axes.grid(True, axis="x")


def sweep(rates: Sequence[float], finals: Mapping[str, np.ndarray], measure: str, key: str) -> str:
    """A final measure over learning rates; `finals` are [rates, S] by method."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (method, values) in enumerate(finals.items()):
            intervals = [mean_interval(row) for row in values]
            axes.fill_between(
                rates,
                [o.low for o in intervals],
                [o.high for o in intervals],
                color=PALETTE[i],
                alpha=0.18,
                linewidth=0,
            )
            axes.plot(
                rates,
                [o.mean for o in intervals],
                color=PALETTE[i],
                marker=MARKERS[i],
                markersize=5,
                linewidth=1.7,
                label=method,
            )
        axes.set_xscale("log")
        axes.set(xlabel="learning rate of Adam", ylabel=UNITS[measure])
        _legend(figure, tuple(finals))

    return as_svg(fill, (FIGURE_WIDTH, 3.4), key)


def as_svg(fill: Callable[[Figure], None], size: tuple[float, float], key: str) -> str:
    """An `<svg>` element without dates, whose ids begin with `key`."""
    with mpl.rc_context({**LOOK, "svg.hashsalt": key}):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        fill(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = short_paths(stream.getvalue())
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for pattern, text in (
        (r'\bid="', f'id="{key}-'),
        (r'href="#', f'href="#{key}-'),
        (r"url\(#", f"url(#{key}-"),
    ):
        svg = re.sub(pattern, text, svg)
    return svg.strip()


# --- theory ---


def theory_figures() -> dict[str, tuple[str, str]]:
    """By name: (what it shows, SVG)."""
    return {
        "modes": (
            "The binned normal nearest to a law with two modes: by KL(target || fit) it covers both, by KL(fit || target) "
            "it keeps to the larger.",
            as_svg(_modes, (FIGURE_WIDTH, 3.1), "modes"),
        ),
        "logarithmic-mean": (
            "Two outcomes of equal mass m, with targets q1 and q2. Above the line, their logarithmic mean, a "
            "policy gradient changes their ratio faster than likelihood does; in a low-density bin it is slower.",
            as_svg(_log_mean, (FIGURE_WIDTH, 3.3), "logmean"),
        ),
        "negative-gradient": (
            "One step from a policy that gives the chosen and the rejected outcome p each and one other "
            "the rest: the change of the chosen one's log-probability, with and without pushing the other down.",
            as_svg(_negative, (FIGURE_WIDTH, 3.5), "negative"),
        ),
        "bnf": (
            "A dispreferred token under gradient flow: against its likelihood without end, with BNF's feedback as the "
            "logarithm of time.",
            as_svg(_held_down, (FIGURE_WIDTH, 3.3), "bnf"),
        ),
    }


def toy_figure() -> tuple[str, str]:
    """The example of the project page: (what it shows, SVG)."""
    return (
        "Ten steps of plain gradient descent at rate 0.3 from the start. On the project page the two results carry each "
        "other's label.",
        as_svg(_toy, (FIGURE_WIDTH, 3.5), "toy"),
    )


def _toy(figure: Figure) -> None:
    axes = figure.subplots()
    start, target = theory.PAGE_TOY
    forward = theory.descended(start, target, theory.forward_direction, 0.3, 10)
    reverse = theory.descended(start, target, theory.reverse_direction, 0.3, 10)
    bars = (
        ("start", start, GRID),
        ("target", target, MUTED),
        ("likelihood, KL(target || policy)", forward, PALETTE[0]),
        ("policy gradient, KL(policy || target)", reverse, PALETTE[1]),
    )
    for i, (label, law, color) in enumerate(bars):
        axes.bar(np.arange(4) + 0.2 * (i - 1.5), law, width=0.18, color=color, label=label)
    axes.set(xlabel="outcome", ylabel="probability", xticks=range(4))
    _legend(figure, [label for label, _, _ in bars])


def _modes(figure: Figure) -> None:
    axes = figure.subplots()
    target = theory.two_modes()
    forward, reverse = theory.best_fits(target)
    axes.fill_between(theory.BINS, target, step="mid", color=GRID, label="target")
    looks = (
        (forward, PALETTE[0], "-", "KL(target || fit)"),
        (reverse, PALETTE[1], (0, (4, 2)), "KL(fit || target)"),
    )
    for fit, color, style, label in looks:
        axes.plot(
            theory.BINS,
            theory.binned_normal(fit.mean, fit.deviation),
            color=color,
            linestyle=style,
            linewidth=1.8,
            label=label,
        )
    axes.set(xlabel="outcome", ylabel="probability")
    axes.legend(frameon=False, labelcolor=INK)


def _log_mean(figure: Figure) -> None:
    axes = figure.subplots()
    ratio = np.geomspace(1.01, 1000, 200)
    second = 0.6 / (1 + ratio)  # the two targets share 0.6
    line = theory.logarithmic_mean(ratio * second, second)
    axes.fill_between(ratio, line, 0.5, color=PALETTE[1], alpha=0.15, linewidth=0)
    axes.fill_between(ratio, 0, line, color=PALETTE[0], alpha=0.15, linewidth=0)
    axes.plot(ratio, line, color=INK, linewidth=1.6)
    axes.text(30, 0.38, "policy gradient faster", color=INK, ha="center")
    axes.text(3, 0.06, "likelihood faster", color=INK, ha="center")
    axes.set_xscale("log")
    axes.set(
        xlabel="q1 / q2, with q1 + q2 = 0.6",
        ylabel="mass m of each under the policy",
        xlim=(1.01, 1000),
        ylim=(0, 0.5),
    )


def _negative(figure: Figure) -> None:
    axes = figure.subplots()
    shares, labels = (
        np.linspace(0.01, 0.49, 97),
        ("likelihood of the chosen", "the same, against the rejected"),
    )
    for negative, color, style, label in (
        (0.0, PALETTE[0], "-", labels[0]),
        (1.0, PALETTE[1], (0, (4, 2)), labels[1]),
    ):
        change = [theory.after_pair_step(np.array([p, p, 1 - 2 * p]), 0, 1, 0.1, negative)[0] for p in shares]
        axes.plot(shares, change, color=color, linestyle=style, linewidth=1.8, label=label)
    meets = (3 - 3**0.5) / 6  # the root of 6 p^2 - 6 p + 1, where sum p^2 = p_w + p_l
    axes.axvline(meets, color=MUTED, linestyle=(0, (2, 2)), linewidth=1)
    axes.text(meets + 0.01, 0.135, "sum p² = p(chosen) + p(rejected)", color=INK, fontsize=8.5)
    axes.set(
        xlabel="probability of the chosen, and of the rejected", ylabel="change of log p(chosen), step 0.1"
    )
    _legend(figure, labels)


def _held_down(figure: Figure) -> None:
    axes = figure.subplots()
    times = np.linspace(0, 30, 61)
    for feedback, color, style, label in (
        (False, PALETTE[1], (0, (4, 2)), "likelihood"),
        (True, PALETTE[0], "-", "BNF"),
    ):
        axes.plot(
            times,
            theory.held_down(np.log(0.05), times, feedback=feedback),
            color=color,
            linestyle=style,
            linewidth=1.8,
            label=label,
        )
    axes.plot(
        times,
        np.log(0.05) - np.log1p(times),
        color=INK,
        linestyle=(0, (1, 3)),
        linewidth=1.8,
        label="log q − log(1 + t)",
    )
    axes.set(xlabel="time of gradient flow (learning rate × steps)", ylabel="log-probability, nats")
    axes.legend(frameon=False, labelcolor=INK)
