"""The page of a diagnosis, from the numbers in diagnosis.json and the tokens in tokens.jsonl alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.report.diagnosis_figures import (
    SIDE_COLOURS,
    bars_figure,
    reach_of,
    scatter_figure,
    tokens_figure,
)
from preftune.report.figures import PALETTE, VARIABLES
from preftune.report.page import render_page, write_page
from preftune.report.panels import Figure, LegendEntry
from preftune.report.read import TOKENS, read_token_table
from preftune.report.summary import EMPTY_CELL, Cell
from preftune.report.tokens import token_pairs
from preftune.stats import Interval
from preftune.text import interval_text, mean_text, percent, plural, range_text, value_text

DIAGNOSIS_PAGE = "diagnosis.html"
SIDES = ("chosen", "rejected")
MAX_RUNS = len(PALETTE)
DIRECTIONS = {
    "apart": "chosen rises, rejected falls",
    "both_rise": "both rise",
    "both_fall": "both fall",
    "wrong_way": "chosen falls, rejected rises",
}
KIND_LABELS = {
    "first": "first token",
    "end": "end-of-turn token",
    "punctuation": "spaces and punctuation",
    "digits": "digits",
    "words": "words",
    "unlikely": "unlikely under the reference (below one half)",
    "likely": "likely under the reference (one half or more)",
}
BARS = {
    "mean_log_ratio": (
        "Log-likelihood shift",
        "nats per token",
        "The log-ratio of a completion per token: above 0 the policy makes it more probable than the reference does.",
    ),
    "abs_mean_log_ratio": (
        "Absolute log-likelihood shift",
        "nats per token",
        "The absolute value, so that rises and falls do not cancel between completions.",
    ),
    "mean_logit_shift": (
        "Logit shift",
        "per token",
        "Absolute change of the logit of each completion token.",
    ),
    "mean_centred_logit_shift": (
        "Centered logit shift",
        "per token",
        "The same for logits minus their mean over the vocabulary; a constant added to all logits does not change it.",
    ),
    "gini": (
        "Concentration of the logit shift",
        "Gini coefficient",
        "0 if all tokens of a completion move equally, near 1 if a few tokens make up the shift.",
    ),
    "gini_centred": (
        "Concentration of the centered logit shift",
        "Gini coefficient",
        "The same for the centered logits.",
    ),
    "mean_greedy_log_ratio": (
        "Log-likelihood shift of the reference's most probable token",
        "nats per token",
        "Above 0 while both completions fall, probability was squeezed into what the model would have written anyway.",
    ),
}


def write_diagnosis(content: Mapping[str, Any], folder: Path) -> Path:
    """Writes the page into the folder and returns its path; `content` is what diagnosis.json holds;
    tokens.jsonl lies there.
    """
    runs = content["runs"]
    rows, notes = read_token_table(folder / TOKENS)
    names = [run["name"] for run in runs]
    page = render_page(
        "diagnosis.html",
        title=f"{len(names)} runs" if len(names) > 1 else names[0],
        summary=summary(content),
        about=f"{plural(content['num_pairs'], 'pair')} of {plural(content['num_prompts'], 'prompt')} from {content['data']}",
        legend=[
            LegendEntry(label=name, look="block", variable=VARIABLES[PALETTE[i]])
            for i, name in enumerate(names)
        ],
        sides=[
            LegendEntry(label=side, look="block", variable=VARIABLES[color])
            for side, color in SIDE_COLOURS.items()
        ],
        bars=_bars(runs),
        scatters=_scatters(runs),
        histograms=_histograms(runs, content["edges"]),
        tables=tables(content),
        quantities=content["quantities"],
        token_pairs=token_pairs(rows),
        notes=notes,
    )
    return write_page(folder / DIAGNOSIS_PAGE, page)


def interval(value: Mapping[str, Any]) -> Interval:
    """An interval as JSON has it: its ends are null where there is one value."""
    low, high = (float("nan") if value[end] is None else value[end] for end in ("low", "high"))
    return Interval(mean=value["mean"], low=low, high=high, num=value["num"])


def summary(content: Mapping[str, Any]) -> list[str]:
    """What the runs did, in a few sentences."""
    runs = content["runs"]
    lines = [_in_words(run) for run in runs]
    if len(runs) > 1:
        for name, words in (
            ("abs_mean_log_ratio", "smallest absolute log-likelihood shift per token"),
            ("gini", "lowest Gini coefficient of logit shifts"),
        ):
            for side in SIDES:
                means = {run["name"]: run["sides"][side]["intervals"][name]["mean"] for run in runs}
                order = sorted(means, key=lambda one: means[one])
                lines.append(
                    f"On {side} completions {order[0]} has the {words}: "
                    + ", ".join(f"{one} {value_text(means[one])}" for one in order)
                    + "."
                )
    return lines


def _in_words(run: Mapping[str, Any]) -> str:
    parts = []
    for side in SIDES:
        change = interval(run["sides"][side]["intervals"]["mean_log_ratio"])
        sure = (
            ""
            if change.num == 1
            else ", the interval excludes zero"
            if change.excludes_zero
            else ", the interval includes zero"
        )
        parts.append(
            f"the log-probability of {side} completions changed by {mean_text(change, signed=True)} nats per token "
            f"({range_text(change, signed=True)}{sure})"
        )
    fell = percent(run["directions"]["both_fall"]["mean"])
    text = f"{run['name']}: {' and '.join(parts)}. In {fell} of pairs both fell."
    if _squeezed(run):
        text += (
            " Probability was squeezed into what the reference finds most probable: both completions fell, and its "
            "most probable tokens rose. An sft term, or supervised steps on both completions first, counters this."
        )
    if run["samples"]:
        kl = interval(run["samples"]["policy"]["intervals"]["log_ratio"])
        text += f" Estimated KL(policy || reference) from its own samples: {interval_text(kl)} nats."
    return text


def _squeezed(run: Mapping[str, Any]) -> bool:
    """Whether both completions became less probable, and the reference's most probable tokens more probable at the
    places of the rejected one, with intervals that exclude 0. This is the squeezing effect of negative gradients (Ren
    and Sutherland, "Learning Dynamics of LLM Finetuning", 2024).
    """
    fell = [interval(run["sides"][side]["intervals"]["mean_log_ratio"]).high < 0 for side in SIDES]
    return all(fell) and interval(run["sides"]["rejected"]["intervals"]["mean_greedy_log_ratio"]).low > 0


def tables(content: Mapping[str, Any]) -> dict[str, dict[str, list[Cell]]]:
    """The tables of the page: title -> row -> a cell for each run."""
    runs, found = content["runs"], {}
    for side in SIDES:
        found[f"{side.capitalize()} completions"] = {
            **{
                f"{title}, {unit}": [_cell(run["sides"][side]["intervals"][name]) for run in runs]
                for name, (title, unit, _) in BARS.items()
            },
            "Gini coefficient of all tokens together": [
                Cell(text=value_text(run["sides"][side]["pooled"]["gini"])) for run in runs
            ],
        }
    found["Pairs"] = {
        "margin, nats of log-ratio": [_cell(run["margin"]) for run in runs],
        "accuracy": [_cell(run["accuracy"]) for run in runs],
        **{
            f"share: {words}": [_cell(run["directions"][name]) for run in runs]
            for name, words in DIRECTIONS.items()
        },
        "CHES under the reference, length-normalized": [_cell(run["ches"]["normalized"]) for run in runs],
        "rank correlation of CHES and the chosen log-ratio": [
            Cell(
                text="–"
                if run["ches"]["rank_correlation"] is None
                else value_text(run["ches"]["rank_correlation"])
            )
            for run in runs
        ],
    }
    if content["samples"]:
        found["Own samples"] = {
            f"{title}, nats per {unit}": [_cell(run["samples"][who]["intervals"][name]) for run in runs]
            for who, title in (
                ("policy", "log-ratio of the policy’s samples, KL(policy || reference)"),
                ("reference", "log-ratio of the reference’s samples, −KL(reference || policy)"),
            )
            for name, unit in (("log_ratio", "completion"), ("mean_log_ratio", "token"))
        } | {
            f"tokens of the {who}’s samples": [
                Cell(text=value_text(run["samples"][who]["num_tokens"])) for run in runs
            ]
            for who in ("policy", "reference")
        }
    return found | _against_first(content) | _class_tables(content)


def _against_first(content: Mapping[str, Any]) -> dict[str, dict[str, list[Cell]]]:
    """Each other run minus the first one, pair by pair."""
    rows = {
        f"{BARS[name][0]}, {side}": [
            EMPTY_CELL,
            *(_cell(one[side][name], signed=True) for one in content["differences"]),
        ]
        for name in BARS
        for side in SIDES
        if name != "mean_log_ratio"
    }
    return {f"Minus {content['runs'][0]['name']}": rows} if content["differences"] else {}


def _class_tables(content: Mapping[str, Any]) -> dict[str, dict[str, list[Cell]]]:
    """What tokens of each kind add to a completion's log-ratio, of both sides and of samples."""
    runs, found = content["runs"], {}
    parts = {f"{side} completions": [run["sides"][side] for run in runs] for side in SIDES}
    if content["samples"]:
        parts |= {
            f"samples of the {who}": [run["samples"][who] for run in runs] for who in ("policy", "reference")
        }
    for title, ones in parts.items():
        found[f"By kind of token: {title}"] = {
            f"{words} ({percent(ones[0][group][name]['share'])} of tokens)"
            if title != "samples of the policy"
            else words: [_cell(one[group][name]["per_completion"]) for one in ones]
            for group in ("kinds", "expectations")
            for name, words in KIND_LABELS.items()
            if name in ones[0][group]
        }
    return found


def _cell(value: Mapping[str, Any], signed: bool = False) -> Cell:
    one = interval(value)
    spread = "" if one.num == 1 else range_text(one, signed=signed)
    return Cell(text=mean_text(one, signed=signed), detail=spread, value=one.mean)


def _bars(runs: Sequence[Mapping[str, Any]]) -> list[Figure]:
    found = []
    for name, (title, unit, meaning) in BARS.items():
        values = [{side: interval(run["sides"][side]["intervals"][name]) for side in SIDES} for run in runs]
        told = "; ".join(
            f"{run['name']}: " + ", ".join(f"{side} {mean_text(one)}" for side, one in sides.items())
            for run, sides in zip(runs, values, strict=True)
        )
        found.append(
            Figure(
                title=title,
                unit=unit,
                svg=bars_figure(values, key=f"bars-{name}"),
                legend=(),
                meaning=meaning,
                alternative=f"{title}, {unit}. {told}.",
            )
        )
    return found


def _scatters(runs: Sequence[Mapping[str, Any]]) -> list[Figure]:
    points = [{side: run["sides"][side]["points"] for side in SIDES} for run in runs]
    reach = reach_of(points)
    return [
        Figure(
            title=run["name"],
            unit="",
            svg=scatter_figure(ones, reach, key=f"scatter-{index}"),
            legend=(),
            meaning="Each point is a completion. Right of the dotted line it became more probable; the higher the point, the more "
            "the logits of its tokens moved. All runs have the same axes.",
            alternative=f"Log-ratio against logit shift of {len(ones['chosen'])} pairs.",
        )
        for index, (run, ones) in enumerate(zip(runs, points, strict=True))
    ]


def _histograms(runs: Sequence[Mapping[str, Any]], edges: Sequence[float]) -> list[Figure]:
    shares = [{side: run["sides"][side]["histogram"] for side in SIDES} for run in runs]
    top = 2 * max(max(one) for sides in shares for one in sides.values())
    return [
        Figure(
            title=run["name"],
            unit="share of tokens",
            svg=tokens_figure(ones, edges, top, key=f"tokens-{index}"),
            legend=(),
            meaning="Distribution of tokens by how much more (right) or less (left) probable they became, on a logarithmic axis. Tokens "
            "beyond the edges count in the outermost bins.",
            alternative="Histogram of the log-ratios of chosen and rejected tokens.",
        )
        for index, (run, ones) in enumerate(zip(runs, shares, strict=True))
    ]
