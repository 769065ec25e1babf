"""The report of a run as plain Markdown, for terminals and pull requests.

Text of models and data is in fences that it cannot end; names and messages are escaped, so that none of
it is markup, a mention or a formula.
"""

import re
from collections.abc import Sequence

from preftune.report.health import health
from preftune.report.read import RunFiles, Sample
from preftune.report.summary import (
    changes,
    describe_reward_change,
    describe_variety,
    last_values,
    what_was_done,
)
from preftune.stats import Interval
from preftune.terminal import clean_terminal
from preftune.text import interval_text, value_text

NUM_SAMPLES = 3  # prompts, their first sample each
MAX_MARKDOWN_CHARACTERS = 600  # of a prompt or completion
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)")
_LINE_START = re.compile(r"^(\d*)([.)#+=-])(?=[\s#=-]|$)")  # lists, headings and rules


def run_markdown(run: RunFiles) -> str:
    """Summary, end points, health and the first samples, in a page or two."""
    measured = changes(run.samples)
    blocks = [f"# {inline(run.name)} ({run.state})", inline(what_was_done(run))]
    if run.message:
        blocks.append(f"> {inline(run.message)}")
    blocks += [inline(describe_reward_change(change)) for change in measured if change.name == "Reward"]
    if run.notes:
        blocks.append("Some files could not be read completely:\n\n" + _list(run.notes))
    if measured:
        rows = [
            [
                f"{one.name}, {one.unit}" if one.unit else one.name,
                *map(_mean, (one.before, one.after)),
                _mean(one.difference, True),
            ]
            for one in measured
        ]
        blocks.append(
            "## Samples before and after\n\n"
            + _table(("mean (95% interval)", "before", "after", "difference"), rows)
            + f"\n\n{describe_variety(run.samples)}"
        )
    ends = [("steps", f"{run.last_step:,}")] + [
        (label, cell.text) for label, cell in last_values(run).items()
    ]
    blocks.append("## Final metrics\n\n" + _table(("measure", "last value"), ends))
    if (judged := health(run)) is not None:
        lines = [f"{one.level}: {one.title}. {one.evidence}. Try: {one.option}" for one in judged.findings]
        blocks.append(
            "\n\n".join(
                ["## Health", inline(f"{judged.summary} {judged.next}"), *([_list(lines)] if lines else [])]
            )
        )
    blocks += _samples(run.samples)
    return "\n\n".join(blocks) + "\n"


def inline(text: str) -> str:
    """One line on which every character stands for itself."""
    line = " ".join(clean_terminal(text).split())
    line = _LINE_START.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", line))
    return line.replace("@", "@\u2060")  # with a word joiner after it no account is notified


def fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    clean = clean_terminal(text.replace("\r\n", "\n").replace("\r", "\n"))
    left_out = len(clean) - MAX_MARKDOWN_CHARACTERS
    shown = (
        f"{clean[:MAX_MARKDOWN_CHARACTERS]}\n… ({left_out:,} more characters in samples.jsonl)"
        if left_out > 0
        else clean
    )
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def _samples(samples: Sequence[Sample]) -> list[str]:
    """The first sample of the first prompts: not chosen by reward or by eye."""
    prompts: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        prompts.setdefault(sample.prompt_index, {}).setdefault(sample.stage, sample)
    blocks = []
    for index, stages in sorted(prompts.items())[:NUM_SAMPLES]:
        blocks.append(f"### Prompt {index + 1}\n\n{fenced(next(iter(stages.values())).prompt)}")
        blocks += [f"{stage}: {_facts(one)}\n\n{fenced(one.completion)}" for stage, one in stages.items()]
    return [f"## The first samples\n\n{blocks[0]}", *blocks[1:]] if blocks else []


def _facts(sample: Sample) -> str:
    reward = f"reward {value_text(sample.reward)}, " if sample.reward is not None else ""
    return f"{reward}{sample.num_tokens} tokens{'' if sample.ended else ', truncated at the limit'}"


def _mean(interval: Interval | None, signed: bool = False) -> str:
    return "–" if interval is None else interval_text(interval, signed=signed)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {inline(line)}" for line in lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned, so that it reads as well where it is not rendered."""
    cells = [[inline(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headings))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
