"""Which metrics are drawn together, and what their curves mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preftune.report.curves import Curve, curves_figure, drawable
from preftune.report.figures import MAX_VALUE, PALETTE, VARIABLES
from preftune.report.read import RunFiles, Series
from preftune.text import value_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A figure to draw where a run has one of its metrics."""

    title: str
    unit: str
    metrics: Mapping[str, str]  # metric -> label
    meaning: str
    zero: bool = False
    share: bool = False
    spread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """`look` is a class of the page's style sheet: line, faint, marked or dashed."""

    label: str
    look: str
    variable: str  # CSS variable of the color


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawn panel with the words around it."""

    title: str
    unit: str
    svg: str
    legend: tuple[LegendEntry, ...]
    meaning: str
    alternative: str  # what a reader who cannot see the figure gets


PANELS = (
    Panel(
        title="Loss",
        unit="",
        metrics={"loss": "loss"},
        spread=True,
        meaning="The loss that the optimizer minimizes, averaged over the units of a step. Evaluation uses held-out data.",
    ),
    Panel(
        title="Reward",
        unit="",
        metrics={"reward": "held-out prompts", "collect/reward": "training prompts"},
        spread=True,
        meaning="The mean reward of the policy's own completions: of held-out prompts at each evaluation, of training "
        "prompts when their collection was sampled.",
    ),
    Panel(
        title="KL to the reference",
        unit="nats per completion",
        metrics={"kl": "KL"},
        zero=True,
        meaning="Distance of the policy from its reference: KL(policy || reference), estimated from its completions of "
        "held-out prompts. A reward that rises with a large KL may be a sign of reward hacking.",
    ),
    Panel(
        title="Log-ratios",
        unit="nats",
        zero=True,
        metrics={"log_ratios/chosen": "chosen", "log_ratios/rejected": "rejected"},
        meaning="How much more (above 0) or less (below 0) probable the policy makes a completion than the reference "
        "does, summed over its tokens; if both fall, chosen completions lose probability, too.",
    ),
    Panel(
        title="Margin",
        unit="implicit reward",
        metrics={"rewards/margins": "margin"},
        zero=True,
        meaning="The implicit reward (beta × log-ratio) of chosen minus rejected; above 0 the policy prefers "
        "the chosen completion more than the reference does.",
    ),
    Panel(
        title="Accuracy",
        unit="share of pairs",
        metrics={"rewards/accuracies": "accuracy"},
        share=True,
        meaning="The share of pairs whose margin is positive; one half (dotted) is chance.",
    ),
    Panel(
        title="Gradient norm",
        unit="",
        metrics={"grad_norm": "gradient norm"},
        spread=True,
        meaning="The norm of the gradient before clipping; spikes mark steps with a large gradient.",
    ),
    Panel(
        title="Learning rate",
        unit="",
        metrics={"learning_rate": "learning rate"},
        meaning="The learning rate of the schedule at this step.",
    ),
    Panel(
        title="Load of experts",
        unit="of an even load",
        metrics={"router/load_max": "most loaded", "router/load_min": "least loaded"},
        zero=True,
        meaning="Tokens of the most and of the least loaded expert of any layer, divided by the tokens of each expert at an "
        "even load. An expert near 0 is not trained.",
    ),
    Panel(
        title="Speed",
        unit="tokens per second",
        metrics={"tokens_per_second": "speed"},
        meaning="Tokens trained on per second of a step.",
    ),
)

PAIR_LABELS = ("chosen", "rejected")
# They only count along with the steps; the summary gives the last value of the first two.
AXES = frozenset({"epoch", "num_tokens", "prompts_seen", "samples_drawn", "reward_queries"})
KNOWN_MEANINGS = {
    "logps": "The mean log-probability of the completions under the policy, summed over their tokens.",
    "rewards": "The mean implicit reward (beta × log-ratio) of the chosen and of the rejected completions.",
    "bnf/weight_chosen": "The mean weight of preferred tokens, as in bnf/weight_rejected.",
    "bnf/weight_rejected": "The mean weight min(1, odds under the policy / odds under the reference): at 1 a token trains as in "
    "SFT, towards 0 its gradient fades.",
    "router/aux_loss": "The load-balancing loss of the experts, before its coefficient; an even load gives the number of "
    "experts of a token.",
    "router/entropy": "Mean entropy of a router's probabilities over the experts, in nats.",
    "step_time": "Seconds per step, including sampling and scoring its collection.",
    "collect_time": "Seconds for sampling and scoring a collection.",
    "entropy": "Mean of -log pi per token of the policy's own completions, in nats: an estimate of its entropy. Near 0 the "
    "policy always writes the same text.",
    "staleness": "Mean number of steps between sampling a completion and training on it; 0 is strictly on-policy.",
    "sampler_gap": "Mean difference of the sampler's and the trainer's log-probability of a token, right after sampling.",
    "sampler_follows": "Share of the policy's latest change that the server shows for the same tokens; 1 if it follows, 0 if it "
    "samples from earlier weights.",
    "correction/weight": "Mean importance weight of a token: the trainer's probability over the sampler's, within its bounds.",
    "correction/limited": "Share of tokens whose importance ratio is outside its bounds.",
    "completions/length": "Tokens of a completion, the end-of-turn token included.",
    "completions/ended": "Share of the completions that ended within the token limit.",
    "collect/left_out": "Prompts of a collection without a gradient: equal rewards, or no rewards.",
    "collect/no_reward": "Completions of a collection without a reward.",
    "collect/parse_failures": "Judge answers in a collection that could not be parsed.",
    "no_reward": "Completions of held-out prompts without a reward.",
    "collect/reward_std": "Standard deviation of the rewards of a collection.",
    "pairs/common_ends": "Share of a pair's tokens that its two completions have in common, at their beginning and end.",
    "length_correlation": "Correlation of margin and difference of lengths, chosen minus rejected, over held-out pairs.",
    "length_bias": "Share of held-out pairs whose chosen completion is longer, minus the share whose rejected completion is longer.",
    "collect/equal_rewards": "Share of a collection's prompts whose completions all have the same reward.",
    "collect/length_correlation": "Correlation of reward and length among the completions of a prompt.",
    "packing": "Share of the computed positions that hold a token; the rest pads rows to one length.",
    "mfu": "Model FLOP utilization: the arithmetic that the policy's update requires (each prompt once, the head only at scored "
    "tokens) divided by what the machine's matrix products could do in the same time. On held-out data: of a forward pass.",
    "sample_mfu": "The same for sampling a collection, which requires one forward pass over its prompts and completions. Each "
    "sampled token reads all weights, so the value is far below that of training.",
}


def figures(runs: Sequence[RunFiles]) -> tuple[Figure, ...]:
    """The main figures of one run, or of several over one another."""
    return _drawn(PANELS, runs, "main")


def more_figures(runs: Sequence[RunFiles]) -> tuple[Figure, ...]:
    """Every other metric; `x/chosen` and `x/rejected` share a figure."""
    names = {name for run in runs for name in (*run.train, *run.evaluation)}
    names = {name for name in names if not name.startswith("health/")}  # they have a separate section
    names -= AXES | {metric for panel in PANELS for metric in panel.metrics}
    groups: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        stem, _, label = name.rpartition("/")
        paired = stem and label in PAIR_LABELS
        groups.setdefault(stem if paired else name, {})[name] = label if paired else name
    return _drawn(
        [
            Panel(
                title=title,
                unit="",
                metrics=metrics,
                meaning=KNOWN_MEANINGS.get(title, "Logged metric of this name."),
            )
            for title, metrics in groups.items()
        ],
        runs,
        "more",
    )


def _drawn(panels: Sequence[Panel], runs: Sequence[RunFiles], prefix: str) -> tuple[Figure, ...]:
    drawn = (_draw(panel, runs, f"{prefix}{index}") for index, panel in enumerate(panels))
    return tuple(figure for figure in drawn if figure is not None)


def _draw(panel: Panel, runs: Sequence[RunFiles], key: str) -> Figure | None:
    """One run: a color per metric. Several runs: a color per run, the second metric dashed."""
    several = len(runs) > 1
    curves: list[Curve] = []
    for run_index, run in enumerate(runs):
        for line_index, metric in enumerate(panel.metrics):
            train, evaluation = run.train.get(metric), run.evaluation.get(metric)
            color, dashed = (
                PALETTE[run_index] if several else PALETTE[line_index],
                several and line_index > 0,
            )
            if train is not None:
                curves.append(Curve(series=train, color=color, faint=evaluation is not None, dashed=dashed))
            if evaluation is not None:
                curves.append(Curve(series=evaluation, color=color, marked=True, dashed=dashed))
    if not curves:
        return None
    svg = curves_figure(curves, key=key, zero=panel.zero, share=panel.share, spread=panel.spread)
    return Figure(
        title=panel.title,
        unit=panel.unit,
        svg=svg,
        legend=_legend(panel, runs, curves),
        meaning=panel.meaning + _gaps(curves),
        alternative=_alternative(panel, runs),
    )


def _legend(panel: Panel, runs: Sequence[RunFiles], curves: Sequence[Curve]) -> tuple[LegendEntry, ...]:
    several, lines = len(runs) > 1, list(panel.metrics.values())
    entries = []
    if len(lines) > 1:
        for index, label in enumerate(lines):
            variable = "--ink" if several else VARIABLES[PALETTE[index]]
            entries.append(
                LegendEntry(label=label, look="dashed" if several and index else "line", variable=variable)
            )
    phase_variable = VARIABLES[PALETTE[0]] if not several and len(lines) == 1 else "--ink"
    if any(curve.marked for curve in curves):
        if any(not curve.marked for curve in curves):
            entries.append(LegendEntry(label="train", look="faint", variable=phase_variable))
        entries.append(LegendEntry(label="evaluation", look="marked", variable=phase_variable))
    return tuple(entries)


def _gaps(curves: Sequence[Curve]) -> str:
    count = sum(not drawable(value) for curve in curves for value in curve.series.values)
    if not count:
        return ""
    return f" {count} logged value{' is' if count == 1 else 's are'} not finite (or beyond {MAX_VALUE:g}): a gap."


def _alternative(panel: Panel, runs: Sequence[RunFiles]) -> str:
    ends = []
    for run in runs:
        for metric, label in panel.metrics.items():
            found: list[tuple[str, Series | None]] = [
                ("train", run.train.get(metric)),
                ("evaluation", run.evaluation.get(metric)),
            ]
            ends += [
                f"{run.name + ', ' if len(runs) > 1 else ''}{label}, {phase}: from {value_text(series.values[0])} "
                f"to {value_text(series.last)}"
                for phase, series in found
                if series is not None
            ]
    return f"{panel.title} over the steps; {'; '.join(ends)}."
