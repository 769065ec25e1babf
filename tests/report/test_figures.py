import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib import pyplot

from preftune.report.curves import MAX_POINTS, Curve, curves_figure, thinned
from preftune.report.figures import PALETTE, histogram_figure
from preftune.report.panels import figures, more_figures
from preftune.report.read import Series, read_run

from .runs import build_run, write_lines


def series(values, start=0):
    return Series(steps=tuple(range(start, start + len(values))), values=tuple(map(float, values)))


def curve(values, **options):
    return Curve(series=series(values), color=PALETTE[0], **options)


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def parse(svg):
    return ET.fromstring(svg)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: curves_figure([curve([1, 2, 3])], key=key),
        lambda key: histogram_figure([0.1, 0.5], [0.7], key=key),
    ],
)
def test_a_figure_is_one_svg_element_without_requests_ids_of_others_or_a_date(draw):
    svg = draw("loss0")
    root = parse(svg)
    assert root.tag.endswith("svg")
    assert root.get("viewBox") and root.get("width") is None
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert ids and all(name.startswith("loss0") for name in ids)
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)
    assert {a or b for a, b in used} <= set(ids)
    addresses = set(re.findall(r"https?://[^\"]*", svg))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of formats
    assert "<style" not in svg and "<metadata" not in svg and "DejaVu" not in svg


def named(svg):
    """Where each text stands, by what it says."""
    return {
        text.text: (float(text.get("x")), float(text.get("y")))
        for text in parse(svg).iter()
        if text.tag.endswith("text")
    }


def test_points_lie_where_the_axes_say():
    """Worked out from the places of two names of each axis; text stands below its line by a third of its
    height of 9.5.
    """
    svg = curves_figure([curve([10, 20, 40, 30], marked=True)], key="a")
    places = named(svg)
    step = places["2"][0] - places["1"][0]
    unit = (places["32"][1] - places["16"][1]) / 16
    expected = [
        (places["1"][0] + (step_number - 1) * step, places["16"][1] - 9.5 / 3 + (value - 16) * unit)
        for step_number, value in enumerate([10, 20, 40, 30])
    ]
    circles = [
        (float(c.get("cx")), float(c.get("cy"))) for c in parse(svg).iter() if c.tag.endswith("circle")
    ]
    assert np.allclose(circles, expected, atol=0.02) and unit < 0 < step
    wide = curves_figure([curve([0.01, 1, 100])], key="a", spread=True)
    heights = [named(wide)[name][1] for name in ("0.01", "0.1", "10", "100")]
    assert (
        heights[0] - heights[1] == pytest.approx(heights[2] - heights[3], abs=0.02)
        and heights[0] > heights[3] + 50
    )


def test_a_value_that_is_not_finite_is_a_gap():
    whole, cut = (
        curves_figure([curve(values)], key="a") for values in ([1, 2, 3, 4, 5], [1, 2, math.nan, 4, 5])
    )
    counts = [re.search(r'd="(M[^"]*)"[^>]*linecap', svg)[1].count("M") for svg in (whole, cut)]
    assert counts == [1, 2]


def test_one_step_is_a_mark_and_has_its_own_name():
    svg = curves_figure([curve([0.25])], key="a")
    assert svg.count("<circle") == 1 and set(texts(svg)) >= {"0", "step"} and "0.5" not in texts(svg)


def paths(svg, style):
    """The points of each path of this style, in the order in which they are drawn."""
    found = [
        path.get("d")
        for path in parse(svg).iter()
        if path.tag.endswith("path") and style in path.get("style")
    ]
    return [
        np.array([[float(x) for x in point] for point in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)])
        for path in found
    ]


@pytest.mark.parametrize("values", [[1, 2, 3], [-5, 7], [2.0], [1e-7, 3e-7], range(2000)])
def test_everything_lies_within_the_axes_and_these_within_the_figure(values):
    svg = curves_figure([curve(values)], key="a")
    (line,) = paths(svg, "linecap")
    left, bottom = paths(svg, "--grid")[-1][0]
    right = float(re.search(rf'd="M{left:.2f} {bottom:.2f}H([\d.]+)', svg)[1])
    (top, *_), names = sorted(y for _, y in named(svg).values()), named(svg)
    assert (
        left < line[:, 0].min()
        and line[:, 0].max() < right < 324
        and line[:, 1].min() > 0
        and line[:, 1].max() < bottom < 194.4
    )
    assert all(0 < x < 324 and 0 < y < 194.4 for x, y in names.values()) and top > 9.5
    named_x = [x for name, (x, y) in names.items() if y > bottom and name != "step"]
    assert all(left <= x <= right for x in named_x)


def test_faint_curves_lie_behind_strong_ones_and_are_faint():
    svg = curves_figure([curve([1, 2, 3]), curve([3, 2, 1], faint=True)], key="a")
    first, second = re.findall(r"<path [^>]*linecap[^>]*>", svg)
    assert "stroke-opacity" in first and "stroke-opacity" not in second


def test_a_thinned_curve_has_the_band_of_its_extremes_and_few_marks():
    values = np.tile([0.0, 1.0], 2000)
    svg = curves_figure([curve(values, marked=True)], key="a")
    (band,), (line,) = paths(svg, "fill-opacity"), paths(svg, "linecap")
    heights = named(svg)
    assert (
        np.ptp(band[:, 1]) == pytest.approx((heights["0.00"][1] - heights["1.00"][1]), abs=0.02)
        and np.ptp(line[:, 1]) < 0.02
    )
    assert len(band) == 2 * len(line) == 800 and 15 < svg.count("<circle") <= 30
    assert not paths(curves_figure([curve([1, 2, 3])], key="a"), "fill-opacity")


def test_a_value_between_gaps_is_a_dot():
    (line,) = paths(curves_figure([curve([1, math.nan, 2, math.nan, 3, 4])], key="a"), "linecap")
    assert (
        line.shape == (6, 2)
        and (line[0] == line[1]).all()
        and (line[2] == line[3]).all()
        and (line[4] != line[5]).all()
    )


def test_factors_of_labels_are_written():
    assert "1e7" in texts(curves_figure([curve([0, 3e7])], key="a")) and "2.4" in texts(
        curves_figure([curve([0, 3e7])], key="a")
    )
    late = Curve(series=Series(steps=(0, 20_000_000), values=(0.0, 1.0)), color=PALETTE[0])
    assert {"1e7", "2.0"} <= set(texts(curves_figure([late], key="a")))


def test_the_same_numbers_give_the_same_bytes():
    draw = [curves_figure([curve([3, 1, 2], marked=True)], key="a") for _ in range(2)]
    assert draw[0] == draw[1]
    assert histogram_figure([0.1, 0.5], [0.7], key="b") == histogram_figure([0.1, 0.5], [0.7], key="b")
    assert pyplot.get_fignums() == []


def test_colors_are_variables_with_a_fallback():
    svg = curves_figure([curve([1, 2, 3])], key="a")
    assert f"var(--series-1, {PALETTE[0]})" in svg
    assert not re.search(r"(?<!, )#[0-9a-f]{6}", svg)  # no color that a dark page could not turn


def test_a_faint_curve_a_marked_one_and_a_dashed_one_differ():
    plain = curves_figure([curve([1, 2, 3])], key="a")
    for options in ({"faint": True}, {"marked": True}, {"dashed": True}):
        assert curves_figure([curve([1, 2, 3], **options)], key="a") != plain
    assert "stroke-dasharray" in curves_figure([curve([1, 2, 3], dashed=True)], key="a")


def test_options_of_the_axis_are_felt():
    wide = [curve([0.01, 1, 100])]
    assert {"0.01", "100"} <= set(texts(curves_figure(wide, key="a", spread=True)))
    assert curves_figure(wide, key="a", spread=True) != curves_figure(wide, key="a")
    narrow = [curve([1, 2, 3])]
    assert curves_figure(narrow, key="a", spread=True) == curves_figure(narrow, key="a")
    assert {"0.00", "1.00"} <= set(texts(curves_figure([curve([0.6, 0.7])], key="a", share=True)))
    assert "0.0" in texts(curves_figure([curve([5, 6])], key="a", zero=True))
    assert "0.0" not in texts(curves_figure([curve([5, 6])], key="a"))


@pytest.mark.parametrize(
    "values",
    [
        [math.nan],
        [math.nan, math.nan, 1.0],
        [math.inf, 1.0, -math.inf],
        [1e300, 1.0, -1e300],
        [0.0],
        [5.0] * 9,
        [1e-12, 2e-12],
        [1.7e308, -1.7e308],
        [1.7e308] * 900,
        [1e-320, 1e300],
        [1e15, 1e15 + 1],
        [-1e-9, 1e9],
    ],
)
@pytest.mark.parametrize("spread", [True, False])
def test_any_numbers_can_be_drawn(values, spread):
    parse(curves_figure([curve(values)], key="a", spread=spread, zero=True))


def test_a_long_series_is_thinned_and_keeps_its_extremes():
    values = np.sin(np.arange(10_000) / 50)
    values[7777] = 40.0
    steps, means, low, high = thinned(series(values))
    assert len(steps) == MAX_POINTS
    assert high.max() == 40.0
    assert low.min() == values.min()
    assert means.mean() == pytest.approx(values.mean())
    values[1234] = math.nan
    assert np.isnan(thinned(series(values))[1]).sum() == 1
    svg = curves_figure([curve(values)], key="a")
    assert len(svg) < 60_000


def test_histograms_of_levels_bins_and_nothing():
    levels = histogram_figure([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], key="a")
    assert {"0", "1", "100%"} <= set(texts(levels))
    parse(histogram_figure(list(np.linspace(-3, 2, 50)), [], key="a"))
    parse(histogram_figure([], [1e300, -1e300, *map(float, range(20))], key="a"))
    parse(histogram_figure([], [], key="a"))


def test_panels_draw_what_is_there(tmp_path):
    run = read_run(build_run(tmp_path / "run", steps=16, num_prompts=2))
    titles = [figure.title for figure in figures([run])]
    assert titles == ["Loss", "Log-ratios", "Margin", "Accuracy", "Gradient norm", "Learning rate", "Speed"]
    assert [figure.title for figure in more_figures([run])] == ["bnf/weight", "logps", "rewards", "step_time"]
    ratios = figures([run])[1]
    assert [entry.label for entry in ratios.legend] == ["chosen", "rejected", "train", "evaluation"]
    assert "rejected, evaluation: from" in ratios.alternative


def test_a_metric_without_evaluation_is_strong_and_needs_no_legend(tmp_path):
    folder = build_run(tmp_path / "run", num_prompts=1)
    write_lines(
        folder / "metrics.jsonl",
        [
            {"step": step, "phase": "train", "loss": 1.0 / step, "a/b/chosen": 1.0, "other": 2}
            for step in range(1, 5)
        ],
    )
    run = read_run(folder)
    (loss,) = figures([run])
    assert loss.legend == ()
    assert "stroke-opacity" not in loss.svg
    assert [figure.title for figure in more_figures([run])] == ["a/b", "other"]


def test_values_left_as_a_gap_are_said(tmp_path):
    folder = build_run(tmp_path / "run", num_prompts=1)
    write_lines(
        folder / "metrics.jsonl", [{"step": s, "phase": "train", "loss": (1, math.nan)[s]} for s in (0, 1)]
    )
    assert figures([read_run(folder)])[0].meaning.endswith(
        "1 logged value is not finite (or beyond 1e+30): a gap."
    )


def test_several_runs_have_a_color_each(tmp_path):
    runs = [
        read_run(build_run(tmp_path / name, steps=8, num_prompts=1, seed=i)) for i, name in enumerate("ab")
    ]
    ratios = figures(runs)[1]
    assert "--series-1" in ratios.svg and "--series-2" in ratios.svg and "--series-3" not in ratios.svg
    assert [(entry.label, entry.look) for entry in ratios.legend][:2] == [
        ("chosen", "line"),
        ("rejected", "dashed"),
    ]
