"""The report of a run, and the comparison of several, as one HTML file that needs nothing else.

Text of models and data is escaped by the template engine and freed of control characters; a
Content-Security-Policy in the page forbids requests and every script but the page's own, which it knows by
its hash; so text which slipped through could still do nothing.
"""

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from preftune.errors import ConfigError
from preftune.report.figures import PALETTE, VARIABLES, histogram_figure
from preftune.report.health import health
from preftune.report.markdown import run_markdown
from preftune.report.panels import Figure, LegendEntry, figures, more_figures
from preftune.report.read import RunFiles, Sample, read_run
from preftune.report.summary import (
    EMPTY_CELL,
    Cell,
    Change,
    changes,
    describe_reward_change,
    describe_variety,
    end_points,
    facts,
    settings_that_differ,
    tiles,
    what_was_done,
)
from preftune.report.tokens import NUM_FOLDED_PAIRS as TOKENS_FOLDED
from preftune.report.tokens import NUM_OPEN, token_legend, token_pairs
from preftune.report.verdict import comparison_verdict
from preftune.storage import whole_file
from preftune.text import mean_text, plural, range_text, signed_text, value_text

HERE = Path(__file__).parent
REPORT_NAME, MARKDOWN_NAME = "report.html", "report.md"
NUM_SHOWN = 12  # prompts shown at once, their first sample each
NUM_FOLDED = 200  # samples behind "all others"; the page stays light, the rest is in samples.jsonl
MAX_CHARACTERS = 4000  # of a prompt or completion

# XML and HTML know no control characters but tab, line feed and carriage return; files know no lone
# surrogates.
INVISIBLE = {code: None for code in (*range(32), *range(127, 160), 0xFFFE, 0xFFFF) if code not in (9, 10, 13)}
INVISIBLE |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
# Marks that turn the direction of writing would reorder the text after them.
INVISIBLE |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One prompt with what the policy answered before and after training."""

    prompt: str
    label: str  # "prompt 3", counted from 1, with its sample where prompts have several
    anchor: str  # its id on the page
    before: Sample | None
    after: Sample | None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Rewards before and after and their difference, lengths before and after, and whether they ended."""
        both = (self.before, self.after)
        rewards = [None if one is None else one.reward for one in both]
        before, after = rewards
        return (
            *(EMPTY_CELL if one is None else Cell(text=value_text(one), value=one) for one in rewards),
            EMPTY_CELL
            if before is None or after is None
            else Cell(text=signed_text(after - before), value=after - before),
            *(
                EMPTY_CELL if one is None else Cell(text=f"{one.num_tokens:,}", value=one.num_tokens)
                for one in both
            ),
            *(EMPTY_CELL if one is None else Cell(text="yes" if one.ended else "no") for one in both),
        )


FactsOf = Callable[[object], Mapping[str, str]]
"""From the objective as config.yaml holds it to its facts, for runs that did not write them down."""


def write_report(run_dir: Path, facts_of: FactsOf | None = None) -> Path:
    """Writes `report.html` and `report.md` into the run folder and returns the path of the page."""
    run = read_run(run_dir)
    if facts_of is not None and "objective" not in run.environment:
        facts = facts_of(run.config.get("objective"))
        run = replace(run, environment={**run.environment, "objective": dict(facts)})
    page = write_page(run_dir / REPORT_NAME, run_page(run))
    write_page(run_dir / MARKDOWN_NAME, run_markdown(run))
    return page


def write_comparison(run_dirs: list[Path], output: Path) -> Path:
    """Writes one page with the runs' curves over one another and a table of where they ended."""
    resolved = [run_dir.resolve() for run_dir in run_dirs]
    if not 1 <= len(resolved) <= len(PALETTE):
        raise ConfigError(
            "A comparison shows a limited number of runs",
            got=f"{len(resolved)}",
            expected=f"1 to {len(PALETTE)} run folders",
            do="More colors cannot be distinguished; compare the runs in groups",
        )
    twice = [str(path) for path, count in Counter(resolved).items() if count > 1]
    if twice:
        raise ConfigError("A run folder is given twice", got=twice[0], do="Name each run folder once")
    if output.is_dir():
        raise ConfigError(
            "The output of a comparison is a file", got=str(output), do="Add a name such as compare.html"
        )
    return write_page(output, comparison_page([read_run(run_dir) for run_dir in run_dirs]))


def run_page(run: RunFiles) -> str:
    """The HTML of one run."""
    measured = changes(run.samples)
    reward = next((change for change in measured if change.name == "Reward"), None)
    shown, folded = split_sample_rows(run.samples)
    return render_page(
        "run.html",
        title=run.name,
        run=run,
        what=what_was_done(run),
        facts=facts(run),
        tiles=tiles(run, measured),
        verdict=describe_reward_change(reward) if reward else "",
        health=health(run),
        changes=[_cells(change) for change in measured],
        variety=describe_variety(run.samples) if run.samples else "",
        figures=figures([run]),
        more_figures=more_figures([run]),
        histogram=_histogram(run.samples),
        token_pairs=token_pairs(run.tokens),
        shown=shown,
        folded=folded[:NUM_FOLDED],
        num_left_out=max(0, len(folded) - NUM_FOLDED),
        command=commands_for(run.folder),
        answers=f"preftune report {shlex.quote(str(run.folder))} --answers 8",
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
    )


def commands_for(run: Path) -> str:
    """How other programs use the model of a run, one line each."""
    folder, final = shlex.quote(str(run)), shlex.quote(str(run / "final"))
    merged = f"preftune export {folder} --to merged --output merged"
    is_adapter = (run / "final" / "adapter_config.json").is_file()
    return "\n".join(
        [
            f"preftune chat {final}",
            f'preftune sample --model {final} --prompt "…"',
            f"AutoModelForCausalLM.from_pretrained({str(run / 'final')!r})  # Python, transformers",
            f"{merged} && vllm serve merged" if is_adapter else f"vllm serve {final}",
            f"preftune export {folder} --to gguf --output gguf && llama-cli -m gguf/model.gguf",
            f"preftune export {folder} --to ollama --output ollama && ollama create NAME -f ollama/Modelfile",
        ]
    )


def comparison_page(runs: Sequence[RunFiles]) -> str:
    """The HTML of several runs over one another."""
    names = distinct_names([run.folder for run in runs])
    legend = [
        LegendEntry(label=name, look="line", variable=VARIABLES[PALETTE[index]])
        for index, name in enumerate(names)
    ]
    ends = [end_points(run) for run in runs]
    labels = dict.fromkeys(label for end in ends for label in end)
    return render_page(
        "comparison.html",
        title=f"{len(runs)} runs" if len(runs) > 1 else names[0],
        legend=legend,
        verdict=comparison_verdict(runs, names),
        settings=settings_that_differ(runs),
        ends={label: [end.get(label, EMPTY_CELL) for end in ends] for label in labels},
        several_objectives=len({str(run.config.get("objective")) for run in runs}) > 1,
        figures=figures(runs),
        more_figures=more_figures(runs),
        notes=[f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes],
    )


def split_sample_rows(samples: Sequence[Sample]) -> tuple[list[SampleRow], list[SampleRow]]:
    """The first sample of the first prompts, and all others, both in the order of the prompts."""
    pairs: dict[tuple[int, int], dict[str, Sample]] = {}
    for sample in samples:
        pairs.setdefault((sample.prompt_index, sample.sample_index), {})[sample.stage] = sample
    several = len(pairs) > len({prompt for prompt, _ in pairs})
    first: dict[int, SampleRow] = {}
    others: list[SampleRow] = []
    for (prompt_index, sample_index), pair in sorted(pairs.items()):
        row = SampleRow(
            prompt=next(iter(pair.values())).prompt,
            before=pair.get("before"),
            after=pair.get("after"),
            label=f"prompt {prompt_index + 1}" + (f", sample {sample_index + 1}" if several else ""),
            anchor=f"sample-{prompt_index + 1}-{sample_index + 1}",
        )
        if prompt_index not in first and len(first) < NUM_SHOWN:
            first[prompt_index] = row
        else:
            others.append(row)
    return list(first.values()), others


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that distinguish them: the folder names, where these differ."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def clean(text: str) -> str:
    """Text without control characters, lone surrogates and marks that turn the direction of writing."""
    return text.translate(INVISIBLE)


def _histogram(samples: Sequence[Sample]) -> Figure | None:
    before, after = (
        [s.reward for s in samples if s.stage == stage and s.reward is not None]
        for stage in ("before", "after")
    )
    if not before and not after:
        return None
    legend = [("before", "--muted", before), ("after", VARIABLES[PALETTE[0]], after)]
    return Figure(
        title="Rewards",
        unit="share of samples",
        svg=histogram_figure(before, after, key="rewards"),
        legend=tuple(
            LegendEntry(label=label, look="block", variable=var) for label, var, found in legend if found
        ),
        meaning="Distribution of rewards of the samples, before and after training.",
        alternative=f"Histogram of the rewards of {len(before)} samples before and {len(after)} after training.",
    )


def _cells(change: Change) -> dict[str, object]:
    """One row of the table: for each column the mean and its interval."""
    columns = {"before": change.before, "after": change.after, "difference": change.difference}
    cells = {
        name: (
            mean_text(interval, signed=name == "difference"),
            range_text(interval, signed=name == "difference"),
        )
        if interval
        else ("–", "")
        for name, interval in columns.items()
    }
    known = change.difference or change.before or change.after
    return {
        "name": change.name,
        "unit": change.unit,
        "cells": list(cells.values()),
        "prompts": plural(known.num if known else 0, "prompt"),
    }


def _cut(text: str) -> str:
    left_out = len(text) - MAX_CHARACTERS
    return (
        text
        if left_out <= 0
        else f"{text[:MAX_CHARACTERS]} … ({left_out:,} more characters in samples.jsonl)"
    )


def render_page(template: str, **values: object) -> str:
    """The page of a template that extends base.html: cleaned, with the script that sorts tables of the class
    `sortable`.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": _cut, "value": value_text}
    environment.filters["svg"] = Markup  # figures hold numbers only, see figures.py
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    tokens = {"token_legend": token_legend(), "token_open": NUM_OPEN, "token_folded": TOKENS_FOLDED}
    trusted = {"script": Markup(script), "script_hash": Markup(f"sha256-{digest}")}
    return clean(environment.get_template(template).render(**trusted, **tokens, **values))


def write_page(path: Path, text: str) -> Path:
    with whole_file(path, "write the report") as file:
        file.write_text(text, encoding="utf-8")
    return path
