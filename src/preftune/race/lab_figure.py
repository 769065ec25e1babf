"""The figure of `lab run`."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from preftune.lab.figures import LOOK, UNITS
from preftune.report.figures import INK, MUTED, PALETTE, short_paths
from preftune.storage import whole_file


def write_lab_figure(result: dict[str, Any], path: Path) -> Path:
    """The objectives by their final expected reward, as SVG, PNG or PDF: a line is a 95% interval over seeds."""
    ended = {
        name: entry["measures"]["return"]
        for name, entry in result["objectives"].items()
        if "measures" in entry
    }
    names = sorted(ended, key=lambda name: ended[name]["mean"][-1])
    start = next(iter(ended.values()))["mean"][0] if ended else 0.0
    with whole_file(path, "write the figure") as file, mpl.rc_context({**LOOK, "svg.hashsalt": "bench"}):
        figure = Figure(figsize=(6.4, 1.2 + 0.2 * len(names)), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for place, name in enumerate(names):
            measure = ended[name]
            axes.plot(
                [measure["low"][-1], measure["high"][-1]],
                [place, place],
                color=PALETTE[0],
                linewidth=2,
                solid_capstyle="butt",
            )
            axes.plot([measure["mean"][-1]], [place], marker="o", markersize=4.5, color=PALETTE[0])
        axes.axvline(start, color=MUTED, linestyle=(0, (2, 2)), linewidth=1)
        axes.annotate(
            "reference",
            (start, len(names) - 0.4),
            color=INK,
            fontsize=8,
            ha="center",
            va="bottom",
            annotation_clip=False,
        )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(
            xlabel=f"{UNITS['return']} after {result['loop']['steps']} steps", ylim=(-0.7, len(names) - 0.4)
        )
        axes.grid(True, axis="x")
        undated: dict[str, Any] = {
            ".svg": {"Date": None},
            ".pdf": {"CreationDate": None},
            ".png": {"Software": None},
        }
        figure.savefig(file, dpi=150, metadata=undated[path.suffix])
        if path.suffix == ".svg":
            file.write_text(short_paths(file.read_text(encoding="utf-8")), encoding="utf-8")
    return path
