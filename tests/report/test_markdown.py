"""report.md, read back by a parser of Markdown that lets HTML through: what it takes for text is text."""

import json

import pytest
from markdown_it import MarkdownIt

from preftune.report import read_run, write_report
from preftune.report.health import health
from preftune.report.markdown import MAX_MARKDOWN_CHARACTERS, NUM_SAMPLES, fenced, inline, run_markdown

from .runs import HOSTILE, HOSTILE_NAME, TRICKS, build_run, sample, spoil, write_lines

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ATTACKS = [
    HOSTILE,
    *(trick for trick in TRICKS if trick.isprintable()),
    "a | b",
    "# x",
    "- x",
    "1. x",
    "1) x",
    "> x",
    "---",
    "===",
    "_x_ a_b",
    "**x**",
    "[x](javascript:alert(1))",
    "![x](y)",
    "<https://x.y>",
    "`x`",
    "``",
    "\\",
    "&amp;",
    "~~x~~",
    "+ x",
]


def kinds(text):
    """Types of all tokens, and of the tokens in lines."""
    tokens = PARSER.parse(text)
    return {one.type for one in tokens} | {child.type for one in tokens for child in one.children or ()}


@pytest.mark.parametrize("text", ATTACKS)
def test_a_line_is_text(text):
    for found in (inline(text), f"- {inline(text)}", f"| {inline(text)} |\n|---|"):
        tokens = PARSER.parse(found)
        children = [child for one in tokens for child in one.children or ()]
        assert {child.type for child in children} <= {"text", "text_special"}, found
        assert "".join(child.content for child in children) == text
        assert kinds(found) <= {
            "paragraph_open",
            "paragraph_close",
            "inline",
            "text",
            "text_special",
            "bullet_list_open",
            "bullet_list_close",
            "list_item_open",
            "list_item_close",
            "table_open",
            "table_close",
            "thead_open",
            "thead_close",
            "tr_open",
            "tr_close",
            "th_open",
            "th_close",
        }


@pytest.mark.parametrize("text", [*ATTACKS, "```\n<script>\n```", "~~~~\n````` x\n", "a\r\nb\rc", "", "\n\n"])
def test_a_fence_holds_its_text(text):
    (token,) = PARSER.parse(fenced(text))
    assert token.type == "fence"
    assert token.content == text.replace("\r\n", "\n").replace("\r", "\n") + "\n"


def test_nobody_is_called_and_nothing_commands_the_terminal():
    assert inline("by @all\nnow") == "by @\u2060all now"
    assert inline("a\x1b[31mb\x00\u202e") == fenced("a\x1b[31mb\x00\u202e").split("\n")[1] == "ab"


def test_the_report_of_a_run(tmp_path):
    run = build_run(tmp_path / "my run", steps=16, num_prompts=5)
    rows = [
        {
            "step": step,
            "phase": "eval",
            "eval_log_ratios/chosen": -5.0 * step,
            "eval_log_ratios/rejected": -9.0 * step,
            "eval_logps/chosen": -100.0,
            "eval_logps/rejected": -110.0,
        }
        for step in (0, 8, 16)
    ]
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    write_report(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert text == run_markdown(read_run(run))
    assert text.startswith(
        "# my run (finished)\n\nsmollm2-135m-instruct was trained with bnf on preferences.jsonl: 16 steps"
    )
    judged = health(read_run(run))
    assert judged is not None and judged.findings and inline(judged.summary) in text
    assert all(f"- {one.level}: {inline(one.title)}." in text for one in judged.findings)
    assert not any(f"- ok: {title}" in text for title in judged.fine)
    assert "The mean reward rose from" in text and "| steps " in text and "| evaluation loss " in text
    assert text.count("### Prompt") == NUM_SAMPLES
    assert {"table_open", "fence", "bullet_list_open", "heading_open"} <= kinds(text)
    assert len(text) < 6000 and "my run/report" not in text


def test_hostile_runs_give_plain_markdown(tmp_path):
    run = spoil(build_run(tmp_path / "run", steps=4, num_prompts=1))
    text = run_markdown(read_run(run))
    assert not kinds(text) & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "em_open",
        "strong_open",
        "code_inline",
        "s_open",
    }
    tokens = PARSER.parse(text)
    assert "".join(child.content for child in tokens[1].children) == f"{HOSTILE_NAME} (failed)"
    assert [one.content for one in tokens if one.type == "fence"] == [f"{HOSTILE}\n"] * 3


def test_long_samples_are_cut_and_say_so(tmp_path):
    run = build_run(tmp_path / "run", steps=4, num_prompts=1)
    write_lines(
        run / "samples.jsonl",
        [sample("after", 0, None, completion="x" * (MAX_MARKDOWN_CHARACTERS + 7), ended=False)],
    )
    text = run_markdown(read_run(run))
    assert "… (7 more characters in samples.jsonl)" in text
    assert "after: 10 tokens, truncated at the limit" in text
