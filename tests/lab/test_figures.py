"""Nothing of a figure lies outside it, and every curve can be told from the others."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from preftune.lab import figures
from preftune.lab.figure_specs import PICTURES
from preftune.lab.figures import Picture, drawn
from preftune.lab.loop import Track

PANELS = [(name, panel) for name, panels in PICTURES.items() for panel in panels if panel.kind == "curves"]


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PANELS)])
def test_legends_fit(name, panel):
    with mpl.rc_context(figures.LOOK):
        figure = Figure(figsize=(figures.FIGURE_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for label in panel.labels:
            axes.plot([0, 1], [0, 1], marker="o", label=label)
        figures._legend(figure, panel.labels)
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width, name
    assert len(set(panel.labels)) == len(panel.runs) <= min(len(figures.PALETTE), len(figures.MARKERS))


@pytest.mark.parametrize("kind", ["curves", "points"])
def test_a_panel_names_its_axes_and_runs(kind):
    values = np.array([[0.0, 0.1, 0.2], [0.5, 0.6, 0.4]])
    track = Track(steps=[0, 10], measures={"return": values}, counters={"grad_steps": [0, 10]})
    picture = Picture(title="mine", runs=("a", "b"), labels=("first", "second"), kind=kind)
    svg = drawn(picture, {"a": track, "b": track}, "key")
    for text in (
        "mine",
        "first",
        "second",
        "expected reward",
        *(["gradient steps"] if kind == "curves" else []),
    ):
        assert f">{text}<" in svg
    assert picture.caption == (
        "Expected reward, over gradient steps" if kind == "curves" else "Expected reward, at the end"
    )
