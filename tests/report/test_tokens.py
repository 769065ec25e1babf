"""Tokens on a page: levels of color by hand, marks for what cannot be seen, and files that are damaged."""

import json
import math

import pytest

from preftune.report import read_run, write_report
from preftune.report.read import read_token_table
from preftune.report.tokens import MAX_TOKENS, look, parse_token_row, token_legend, token_pairs, visible

from .runs import build_run
from .token_files import row_of, write_tokens


def test_the_level_of_a_log_ratio():
    ratios = (0.0, 0.029, -0.029, 0.03, -0.03, 0.1, 0.2999, -0.3, 1.0, -2.9, 3.0, -40.0)
    assert [look(ratio) for ratio in ratios] == [
        "even",
        "even",
        "even",
        "up1",
        "down1",
        "up2",
        "up2",
        "down3",
        "up4",
        "down4",
        "up5",
        "down5",
    ]
    assert [one.text for one in token_legend()] == [
        "−3",
        "−1",
        "−0.3",
        "−0.1",
        "−0.03",
        "0",
        "+0.03",
        "+0.1",
        "+0.3",
        "+1",
        "+3",
    ]
    assert [one.look for one in token_legend()][:6] == ["down5", "down4", "down3", "down2", "down1", "even"]


def test_what_cannot_be_seen_has_a_mark():
    texts = (
        "",
        " ",
        "   ",
        "\n",
        "a\n\tb",
        "\x00",
        "\x7f",
        "\u200b",
        "\u202e",
        "\u00ad",
        "\ud800",
        " a",
        "<|im_end|>",
        "👩\u200d🚀",
        "日",
    )
    assert [visible(text) for text in texts] == [
        "◌",
        "·",
        "···",
        "↵\n",
        "a↵\n⇥\tb",
        "⟨U+0000⟩",
        "⟨U+007F⟩",
        "⟨U+200B⟩",
        "⟨U+202E⟩",
        "⟨U+00AD⟩",
        "⟨U+D800⟩",
        " a",
        "<|im_end|>",
        "👩\u200d🚀",
        "日",
    ]


def test_the_numbers_of_a_completion():
    tokens = [
        {"text": "a", "logp": math.log(0.5), "ref_logp": math.log(0.25)},
        {"text": "b", "logp": -3.0, "ref_logp": -1.0},
    ]
    row = parse_token_row(row_of("run", 0, "chosen") | {"tokens": tokens})
    assert row.log_ratio == pytest.approx(math.log(2) - 2)
    assert row.tokens[0].title == "+0.693: 25% → 50%"
    assert row.facts == "log-ratio −1.31 over 2 tokens" and row.most == "“b” −2.00, “a” +0.693"
    long = parse_token_row(row_of("run", 0, "chosen") | {"tokens": tokens * MAX_TOKENS})
    assert (len(long.tokens), long.num_left_out) == (MAX_TOKENS, MAX_TOKENS)
    assert long.log_ratio == pytest.approx(MAX_TOKENS * row.log_ratio)


@pytest.mark.parametrize(
    "change",
    [
        {"pair": None},
        {"pair": True},
        {"side": "x"},
        {"side": []},
        {"tokens": []},
        {"tokens": [1]},
        {"run": 3},
        {"prompt": None},
        {"tokens": [{"text": "a", "logp": None, "ref_logp": 0.0}]},
        {"tokens": [{"text": "a", "logp": float("nan"), "ref_logp": 0.0}]},
        {"tokens": [{"text": 1, "logp": 0.0, "ref_logp": 0.0}]},
        {"tokens": [{"text": "a", "logp": 10**400, "ref_logp": 0.0}]},
    ],
)
def test_a_damaged_row_is_left_out_and_said(tmp_path, change):
    path = tmp_path / "tokens.jsonl"
    path.write_text(
        "".join(
            json.dumps(row) + "\n" for row in (row_of("r", 0, "chosen") | change, row_of("r", 0, "rejected"))
        )
    )
    rows, notes = read_token_table(path)
    assert [row.side for row in rows] == ["rejected"]
    assert notes == ("tokens.jsonl: 1 line without the fields of a completion skipped.",)


def test_the_page_of_a_run_with_tokens(tmp_path):
    run = build_run(tmp_path / "run", steps=4, num_prompts=2)
    assert "Token by token" not in write_report(run).read_text(encoding="utf-8")
    write_tokens(run, num_pairs=5)
    found = read_run(run)
    assert [(pair.label, len(pair.rows), pair.several) for pair in token_pairs(found.tokens)][4] == (
        "pair 5",
        2,
        False,
    )
    html = write_report(run).read_text(encoding="utf-8")
    assert '<span class="token up1" title="+0.0400: 0.248% → 0.258%"> robin</span>' in html
    assert "More pairs (1)" in html and "&lt;|im_end|&gt;" in html
