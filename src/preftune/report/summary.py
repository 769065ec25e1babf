"""Summary of a run's files, in words and numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preftune.data.repetition import distinct_pairs, is_repetitive
from preftune.report.read import RunFiles, Sample
from preftune.report.verdict import accuracy_interval
from preftune.stats import Interval, cluster_means, mean_interval, paired_interval
from preftune.text import describe, interval_text, mean_text, percent, plural, range_text, value_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A measure of the samples before and after training, over the same prompts; what was not sampled is
    None.
    """

    name: str
    unit: str  # "", "%" (values are in percent) or "tokens"
    before: Interval | None
    after: Interval | None
    difference: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the summary."""

    title: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of a table. `value` is what the column is sorted by; None where the text is."""

    text: str
    detail: str = ""  # below the number: its interval
    value: int | float | None = None


EMPTY_CELL = Cell(text="–")


REPETITIVE = "Repetitive"


def changes(samples: Sequence[Sample]) -> tuple[Change, ...]:
    """Reward, share ended, length and share of repetitive samples, before and after; a measure that no sample
    has is left out.
    """
    measures = (
        ("Reward", "", [(s, s.reward) for s in samples if s.reward is not None]),
        ("Completed", "%", [(s, 100.0 * s.ended) for s in samples]),
        ("Length", "tokens", [(s, float(s.num_tokens)) for s in samples]),
        (REPETITIVE, "%", [(s, 100.0 * is_repetitive(s.completion)) for s in samples]),
    )
    return tuple(_change(name, unit, measured) for name, unit, measured in measures if measured)


def describe_variety(samples: Sequence[Sample]) -> str:
    """What `Repetitive` counts, and distinct-2 over all samples of a stage."""
    texts = {
        stage: [s.completion for s in samples if s.stage == stage and s.completion.strip()]
        for stage in ("before", "after")
    }
    shares = [
        f"{value_text(share)} {stage}"
        for stage, found in texts.items()
        if math.isfinite(share := distinct_pairs(found))
    ]
    told = (
        f" Distinct-2 (distinct word pairs / all word pairs of a stage): {', '.join(shares)}."
        if shares
        else ""
    )
    return (
        "Repetitive: some run of 4 words occurs 3 times, or fewer than 40% of more than 20 words are distinct."
        + told
    )


def _change(name: str, unit: str, measured: Sequence[tuple[Sample, float]]) -> Change:
    """Prompts that have both stages, where there are any: else the two means would be of different prompts."""
    prompts = {
        stage: {s.prompt_index for s, _ in measured if s.stage == stage} for stage in ("before", "after")
    }
    both = prompts["before"] & prompts["after"]
    means = {}
    for stage in ("before", "after"):
        chosen = [(s, v) for s, v in measured if s.stage == stage and (not both or s.prompt_index in both)]
        if chosen:
            means[stage] = cluster_means([v for _, v in chosen], [s.prompt_index for s, _ in chosen])
    return Change(
        name=name,
        unit=unit,
        before=mean_interval(means["before"]) if "before" in means else None,
        after=mean_interval(means["after"]) if "after" in means else None,
        difference=paired_interval(means["before"], means["after"], sorted(both)) if both else None,
    )


def describe_reward_change(change: Change) -> str:
    """The reward before and after in one or two sentences."""
    difference, before, after = change.difference, change.before, change.after
    if difference is None or before is None or after is None:
        stage, other, interval = (
            ("before", "after", before) if before is not None else ("after", "before", after)
        )
        return (
            ""
            if interval is None
            else (
                f"The mean reward {stage} training is {mean_text(interval)}, over {plural(interval.num, 'prompt')} (95% "
                f"interval: {range_text(interval)}); there are no samples {other} training for comparison."
            )
        )
    moved = "rose" if difference.mean > 0 else "fell" if difference.mean < 0 else "stayed the same:"
    start = (
        f"The mean reward {moved} from {mean_text(before, like=difference)} before training to "
        f"{mean_text(after, like=difference)} after it, over the same {plural(difference.num, 'prompt')}"
    )
    if difference.num == 1:
        return f"{start}. One prompt gives no interval, so the difference may be due to chance."
    interval = range_text(difference, signed=True)
    spread = f"the difference is {mean_text(difference, signed=True)} (95% interval {interval})"
    if difference.excludes_zero:
        return f"{start}; {spread}. The interval excludes zero."
    return (
        f"{start}; {spread}. The interval includes zero: these samples do not show that the reward changed."
    )


def tiles(run: RunFiles, measured: Sequence[Change]) -> tuple[Tile, ...]:
    """The numbers at the top of the page."""
    shown = [_change_tile(change) for change in measured if change.name != REPETITIVE]
    accuracies, margins, reward, loss = (
        run.evaluation.get(name) for name in ("rewards/accuracies", "rewards/margins", "reward", "loss")
    )
    if accuracies is not None:
        margin = f"; mean margin {value_text(margins.last)}" if margins is not None else ""
        shown.append(
            Tile(
                title="Evaluation accuracy",
                value=percent(accuracies.last),
                detail=f"of pairs have a positive margin ({_spread(run)}){margin}, at step {accuracies.steps[-1]:,}",
            )
        )
    elif margins is not None:
        shown.append(
            Tile(
                title="Evaluation margin",
                value=value_text(margins.last),
                detail=f"implicit reward, chosen minus rejected, at step {margins.steps[-1]:,}",
            )
        )
    elif reward is not None:
        kl = run.evaluation.get("kl")
        shown.append(
            Tile(
                title="Held-out reward",
                value=f"{value_text(reward.values[0])} → {value_text(reward.last)}",
                detail=f"KL {value_text(kl.last)} nats, at step {kl.steps[-1]:,}"
                if kl
                else f"at step {reward.steps[-1]:,}",
            )
        )
    elif loss is not None:
        shown.append(
            Tile(title="Evaluation loss", value=value_text(loss.last), detail=f"at step {loss.steps[-1]:,}")
        )
    return tuple(shown)


def _spread(run: RunFiles) -> str:
    """How sure the last accuracy is."""
    found = accuracy_interval(run)
    if found is None:
        return "no interval: the run did not note how many prompts it held out"
    return (
        f"95% interval {percent(found.low)} to {percent(found.high)}, {plural(found.num, 'held-out prompt')}"
    )


def _change_tile(change: Change) -> Tile:
    title = f"{change.name}, {change.unit}" if change.unit == "tokens" else change.name
    unit = "%" if change.unit == "%" else ""
    before, after, difference = change.before, change.after, change.difference
    if before is None or after is None or difference is None:
        stage, only = ("before", before) if before is not None else ("after", after)
        return Tile(
            title=title, value=f"{mean_text(only)}{unit}" if only else "–", detail=f"{stage} training only"
        )
    value = f"{mean_text(before, like=difference)}{unit} → {mean_text(after, like=difference)}{unit}"
    return Tile(title=title, value=value, detail=f"difference {interval_text(difference, signed=True)}")


def what_was_done(run: RunFiles) -> str:
    """What was trained on what with what, in one sentence."""
    config = run.config
    objective = config.get("objective")
    model, data = config.get("model"), config.get("data")
    words = [describe(model) if model is not None else "A model", "was trained"]
    if objective is not None:
        words.append(f"with {objective_text(objective)}")
    if data is not None:
        words.append(f"on {describe(data)}")
    amounts = [plural(run.last_step, "step")]
    epoch, num_tokens = run.train.get("epoch"), run.train.get("num_tokens")
    if epoch is not None:
        amounts.append(f"{epoch.last:.3g} {'epoch' if epoch.last == 1 else 'epochs'}")
    if num_tokens is not None:
        amounts.append(plural(int(num_tokens.last), "token"))
    for name, noun in (
        ("prompts_seen", "prompt"),
        ("samples_drawn", "sample"),
        ("reward_queries", "reward query"),
    ):
        count = run.train.get(name)
        if config.get("source") in ("on-policy", "hybrid") and count is not None:
            amounts.append(
                plural(int(count.last), noun)
                if noun != "reward query"
                else f"{int(count.last):,} reward queries"
            )
    return f"{' '.join(words)}: {', '.join(amounts)}."


def objective_text(objective: object) -> str:
    """`bnf`, or `dpo (beta 0.1)` with its hyperparameters."""
    if not isinstance(objective, Mapping):
        return describe(objective)
    parameters = [
        f"{key} {describe(value)}" for key, value in objective.items() if key != "name" and value is not None
    ]
    name = describe(objective.get("name", "an objective"))
    return f"{name} ({', '.join(parameters)})" if parameters else name


def facts(run: RunFiles) -> tuple[tuple[str, str], ...]:
    """Settings worth seeing without opening the configuration."""
    optim = run.config.get("optim")
    known = {**run.config, **(optim if isinstance(optim, Mapping) else {})}
    wanted = {"learning_rate": "learning rate", "batch_size": "batch size", "seed": "seed"}
    settings = [(label, describe(known[key])) for key, label in wanted.items() if known.get(key) is not None]
    if {"step", "metric", "value"} <= run.best.keys():
        kept = f"step {run.best['step']}, {run.best['metric']} {describe(run.best['value'])}"
        settings.append(("best weights", kept))
    num_parameters = run.environment.get("num_parameters")
    if isinstance(num_parameters, int):
        settings.append(("parameters", f"{num_parameters:,}"))
    device, layout = run.environment.get("device"), run.environment.get("layout")
    if device is not None:
        settings.append(("device", describe(device)))
    if isinstance(layout, Mapping) and {"rows", "attention"} <= layout.keys():
        rows, attention = (describe(layout[name]) for name in ("rows", "attention"))
        settings.append(("layout", f"{rows} rows, {attention} attention"))
    return tuple(settings)


def end_points(run: RunFiles) -> dict[str, Cell]:
    """Where a run ended, by label: measures of its samples first, then what was logged last."""
    row = {"state": Cell(text=run.state), "steps": Cell(text=f"{run.last_step:,}", value=run.last_step)}
    for change in changes(run.samples):
        name = change.name.lower() + (f", {change.unit}" if change.unit else "")
        before, after, difference = change.before, change.after, change.difference
        if before is not None and after is not None and difference is not None:
            text = f"{mean_text(before, like=difference)} → {mean_text(after, like=difference)}"
            row[name] = Cell(text=text, detail=interval_text(difference, signed=True), value=after.mean)
    return row | last_values(run)


def last_values(run: RunFiles) -> dict[str, Cell]:
    """The last value of what was logged, by label."""
    drawn = run.train.get("samples_drawn") if run.config.get("source") in ("on-policy", "hybrid") else None
    measured = (
        ("held-out reward", run.evaluation.get("reward"), value_text),
        ("KL to the reference", run.evaluation.get("kl"), value_text),
        ("accuracy", run.evaluation.get("rewards/accuracies"), percent),
        ("margin", run.evaluation.get("rewards/margins"), value_text),
        ("log-ratio of chosen", run.evaluation.get("log_ratios/chosen"), value_text),
        ("log-ratio of rejected", run.evaluation.get("log_ratios/rejected"), value_text),
        ("evaluation loss", run.evaluation.get("loss"), value_text),
        ("train loss", run.train.get("loss"), value_text),
        ("samples", drawn, value_text),
    )
    cells = {
        label: Cell(text=text(series.last), value=series.last)
        for label, series, text in measured
        if series is not None
    }
    if "accuracy" in cells:
        cells["accuracy"] = replace(cells["accuracy"], detail=_spread(run))
    return cells


def settings_that_differ(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """Each setting, by its dotted name, that is not the same in all runs, with its value in each."""
    flat = [_flat(run.config) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = {name: [settings.get(name, "–") for settings in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    settings: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings |= _flat({str(inner): entry for inner, entry in value.items()}, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = describe(value)
    return settings
