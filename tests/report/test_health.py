"""The health section of a page, computed from metrics.jsonl alone."""

import json

from preftune.report import write_report
from preftune.report.health import health
from preftune.report.read import read_run

from .runs import build_run, write_lines


def test_a_page_begins_with_what_is_wrong(tmp_path):
    folder = build_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = max(row["step"] for row in rows)
    for row in rows:
        if row["phase"] == "eval" and row["step"] == last:
            row |= {
                "eval_log_ratios/chosen": -40.0,
                "eval_log_ratios/rejected": -90.0,
                "eval_logps/chosen": -122.0,
            }
        if row["phase"] == "eval":
            row |= {"eval_logps/chosen": row.get("eval_logps/chosen", -82.0), "eval_logps/rejected": -95.0}
    write_lines(folder / "metrics.jsonl", rows)
    html = write_report(folder).read_text(encoding="utf-8")
    assert html.index("<h2>Health</h2>") < html.index("<h2>Training</h2>")
    for words in (
        "Displacement",
        "log-ratio of chosen -40.00",
        "Try <code>--learning_rate 6.7e-07</code>",
        "Threshold: share of",
        "this objective raises the chosen completion",
        "Here it is 0.4",
    ):
        assert words in html, words
    found = health(read_run(folder))
    assert found is not None
    assert found.findings[0].level == "act"
    assert found.summary.startswith("Of 15 conditions ")
    assert "Reference mismatch" in found.fine
    assert "KL blow-up" in found.unknown


def test_numbers_that_are_logged_for_health_are_not_drawn_beside_it(tmp_path):
    folder = build_run(tmp_path / "run", steps=16)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before = write_report(folder).read_text().count("<svg")
    write_lines(
        folder / "metrics.jsonl", [row | ({"health/kl": 2} if row["phase"] == "eval" else {}) for row in rows]
    )
    assert write_report(folder).read_text().count("<svg") == before


def test_a_run_with_nothing_to_judge_has_no_such_section(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("objective: {name: sft}\n")
    assert health(read_run(folder)) is None
    assert "<h2>Health</h2>" not in write_report(folder).read_text()
