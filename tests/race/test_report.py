"""The page of a race: words, intervals and curves from the content of comparison.json alone."""

import pytest

from preftune.race.report import mean_curve, race_page, race_table, write_race
from tests.report.test_page import Page

EVIL = "<script>alert(1)</script>\x1b[31m\u202e"


def run(seed, score, *, steps=(0, 2, 4), rate=1e-6, failed=None, kl=None, samples=8.0) -> dict:
    curve = [] if score is None else [[float(s), s * samples, score * s / steps[-1]] for s in steps]
    return {
        "seed": seed,
        "rate": rate,
        "share": 1.0,
        "folder": f"runs/x-{seed}",
        "score": score,
        "failed": failed,
        "curve": curve,
        "counters": {"steps": float(steps[-1]), "samples_drawn": steps[-1] * samples, "seconds": 1.5},
        "measures": {} if kl is None else {"kl": kl},
    }


def content(scores, **more) -> dict:
    seeds = list(range(10, 10 + max(map(len, scores.values()))))
    methods = {
        name: {
            "tuning": [],
            "runs": [
                run(seed, score, failed=None if score is not None else "after step 1: The loss is nan; got x")
                for seed, score in zip(seeds, of, strict=False)
            ],
        }
        for name, of in scores.items()
    }
    return {
        "on": "pairs.jsonl",
        "source": "offline",
        "budget": {"unit": "steps", "amount": 4.0},
        "rates": [1e-6],
        "tuning_seeds": [],
        "seeds": seeds,
        "rungs": [],
        "methods": methods,
        "model": None,
        "measure": {
            "name": "margin",
            "title": "held-out margin",
            "unit": "nats",
            "meaning": "What it means.",
        },
        **more,
    }


NEAR, FAR = [1.0, 1.2, 1.1], [0.0, 0.21, 0.1]


@pytest.mark.parametrize(
    ("scores", "summary"),
    [
        (
            {"a": NEAR, "b": FAR},
            "a is best in held-out margin: its lead over the other methods is significant with 3 seeds.",
        ),
        (
            {"a": NEAR, "b": [1.1, 1.15, 1.0], "c": FAR},
            "a and b are tied best in held-out margin: 3 seeds do not separate them. c is behind.",
        ),
        (
            {"a": NEAR, "b": NEAR, "c": NEAR},
            "a, b and c are tied best in held-out margin: 3 seeds do not separate them.",
        ),
        (
            {"a": NEAR, "b": [None, 1.0, 2.0]},
            "a is best in held-out margin, the only method that did not fail. b failed.",
        ),
        (
            {"a": [None, None], "b": [None, 1.0]},
            "Every method failed: no run at a tuned learning rate ended with a finite score.",
        ),
    ],
)
def test_the_summary(scores, summary):
    assert race_table(content(scores)).summary == summary


def test_a_method_of_which_a_run_failed_was_not_best_of_all():
    """Failing everywhere and failing once are told apart from being left alone."""
    whole = content({"a": NEAR, "b": [None, 1.0, 2.0], "c": []})
    whole["methods"]["c"]["tuning"] = [
        run(9, None, rate=3e-6, failed="after step 2: The gradient is not finite; got rows")
    ]
    rows = {row.method: row for row in race_table(whole).rows}
    assert rows["b"].failed == "1 of 3 runs failed, seed 10 after step 1: The loss is nan"
    assert (
        rows["c"].failed
        == "every learning rate failed in tuning, 3e-06 after step 2: The gradient is not finite"
    )
    assert rows["a"].failed is None and rows["a"].tied


def test_the_table_by_hand():
    """a - b is 1, .99, 1: mean .9967, se .00333, t(97.5%, 2) = 4.3027: half the width .01434."""
    table = race_table(content({"b": FAR, "a": NEAR}))
    assert table.headings[3:] == ["held-out margin (95%)", "behind the best", "steps", "samples", "seconds"]
    first, second = table.cells()
    assert first == ["a", "best", "1e-06", "1.10 (0.85 to 1.35)", "–", "4", "32", "1.50"]
    assert second[:2] == ["b", ""] and second[4] == "0.997 (0.982 to 1.011)"


def test_the_mean_curve():
    """At the steps that all seeds have, and at the ends where these differ."""
    one, two = (
        [[0.0, 0.0, 1.0], [2.0, 16.0, 2.0], [4.0, 32.0, 3.0]],
        [[0.0, 0.0, 3.0], [2.0, 20.0, 4.0], [5.0, 50.0, 6.0]],
    )
    assert [(x, i.mean) for x, i in mean_curve([one, two], 0)] == [(0.0, 2.0), (2.0, 3.0), (4.5, 4.5)]
    assert [x for x, _ in mean_curve([one, two], 1)] == [0.0, 18.0, 41.0]
    assert [(x, i.mean) for x, i in mean_curve([one, one], 0)] == [(0.0, 1.0), (2.0, 2.0), (4.0, 3.0)]


def test_the_page(tmp_path):
    scores = {"a": NEAR, EVIL: FAR, "c": [None, 1.0, 1.0]}
    found = content(
        scores,
        rungs=[{"rates": 2, "share": 0.5, "budget": 2.0}],
        tuning_seeds=[9],
        model="runs/a/final",
        on=EVIL,
    )
    found["methods"]["a"]["tuning"] = [
        {**run(9, 0.5), "share": 0.5},
        {**run(9, None, rate=2e-6), "share": 0.5},
    ]
    page = Page(write_race(found, tmp_path / "race.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1 and page.tags.count("svg") == 1 and "alert(1)" in page.text
    assert "\x1b" not in page.text and "\u202e" not in page.text
    assert "1e-06: 0.500; 2e-06: failed" in page.text and "2 rates with 2 steps on seed 9" in page.text
    assert (
        "runs/a/final" in page.text and "What it means." in page.text and "the only method" not in page.text
    )
    assert not any(
        value and value.startswith("http") for name, value in page.attributes if name in ("src", "href")
    )


def test_curves_over_samples_where_these_are_the_budget():
    by = {
        unit: race_page(content({"a": NEAR, "b": FAR}, budget={"unit": unit, "amount": 32.0}))
        for unit in ("samples", "steps")
    }
    assert "over samples drawn" in by["samples"] and "over step:" in by["steps"]


def test_no_curve_where_there_is_none_and_no_more_than_can_be_told_apart():
    found = content({f"m{k}": [k + 0.1, k + 0.2] for k in range(10)})
    page = Page(race_page(found))
    assert "m9" in page.text and page.tags.count("svg") == 1
    assert race_page(found).count('class="mark line"') == 8
    for entry in found["methods"].values():
        for one in entry["runs"]:
            one["curve"] = one["curve"][-1:]
    assert "<svg" not in race_page(found)
