"""Conditions of runs on preferences: where probability goes, what pairs can teach, what is memorized."""

from dataclasses import replace

from preftune.health.history import History, Points
from preftune.health.verdict import Measured, Threshold, one_in

MIN_FALL = 2.0
"""Nats by which a chosen completion must have fallen before the fall counts: less is what one common token
moves.
"""
MIN_MARGIN = 5.0
"""Nats of margin before one asks where it comes from."""
FALL_NOT_USUAL = Threshold(
    measures="share of the chosen completion's log-probability lost",
    watch=0.05,
    act=0.15,
    reason="this objective raises the chosen completion, so any clear fall has another cause",
)
FALL_USUAL = Threshold(
    measures="share of the chosen completion's log-probability lost",
    watch=0.1,
    act=0.4,
    reason="this objective sees only differences, and falls of a few percent are common in healthy runs",
)
REJECTED_SHARE = Threshold(
    measures="share of the margin that comes from lowering the rejected completion",
    watch=0.95,
    reason="the chosen completion's part of the margin is within the noise of an evaluation; many good runs look like this",
)
OVERLAP = Threshold(
    measures="share of a pair's tokens in the common prefix and suffix of its completions",
    watch=0.7,
    act=0.9,
    reason="common tokens are raised and lowered at once: with 90% in common, nearly all of the gradient cancels",
)
LENGTH_RULE = Threshold(
    measures="correlation of held-out margins with length differences, times the bias of these differences",
    watch=0.4,
    act=0.75,
    reason="sums over tokens correlate with length in healthy runs, too, by up to 0.85; with the bias included, healthy "
    "runs of the calibration stay below 0.3",
)
GENERALISATION_GAP = Threshold(
    measures="accuracy on training pairs minus accuracy on held-out pairs",
    watch=0.15,
    act=0.35,
    reason="a held-out set of a few dozen pairs has a standard error of about 0.07; the watch threshold is twice that",
)
HELD_OUT_LOSS = Threshold(
    measures="relative rise of the held-out loss over its lowest value",
    watch=0.15,
    act=0.6,
    reason="in healthy runs, held-out losses of small sets rise by a few percent between two evaluations",
)
HELD_OUT_MARGIN = Threshold(
    measures="relative fall of the held-out margin from its best value",
    watch=0.4,
    act=0.75,
    reason="the margin of small held-out sets varies by about 25% while the training margin grows",
)
MEMORIZED = "The run memorizes its training data at the expense of held-out data."
FITTED = 0.99
"""Accuracy on training pairs from which they count as memorized."""
FLAT_LOSS_CHANGE = 0.1
"""Share of its first value at which a training loss counts as near 0."""


def displacement(history: History) -> Measured | None:
    """Chosen completions lose probability while the margin grows."""
    settings, held, trained = history.settings, _moved(history), _moved(history, trained=True)
    places = [one for one in (held, trained) if one is not None and one[0] > one[1]]
    if (held is None and trained is None) or settings.chosen_fall == "intended":
        return None
    chosen, rejected, size, _ = min(
        places, key=lambda one: one[0] / one[2], default=held or trained or (0.0, 0.0, 1.0, 1.0)
    )
    usual = settings.chosen_fall == "possible"
    grows = chosen > rejected
    meaning = (
        f"Chosen completions lose probability, too. {settings.objective} sees only differences, so a small fall is usual, but "
        "the probability may go to neither completion."
        if usual
        else "Chosen completions lose probability, although this objective is designed to raise them."
    )
    slower = one_in(3.0, settings.learning_rate)
    return Measured(
        value=-chosen / size if grows and -chosen >= MIN_FALL else 0.0,
        threshold=FALL_USUAL if usual else FALL_NOT_USUAL,
        evidence=f"log-ratio of chosen {chosen:+.2f}, of rejected {rejected:+.2f} nats; initial log-probability of chosen {-size:.1f}",
        meaning=meaning,
        option=(settings.against_fall or slower) if usual else slower,
    )


def rejected_only(history: History) -> Measured | None:
    """The margin grows by pushing rejected completions down alone."""
    moved = _moved(history)
    if moved is None or history.settings.chosen_fall == "intended":
        return None
    chosen, rejected, _, _ = moved
    margin = chosen - rejected
    return Measured(
        value=1 - max(chosen, 0.0) / margin if margin >= MIN_MARGIN and chosen > -MIN_FALL else 0.0,
        threshold=REJECTED_SHARE,
        evidence=f"log-ratio of chosen {chosen:+.2f}, of rejected {rejected:+.2f} nats",
        meaning="The policy lowers rejected completions and hardly raises chosen completions.",
        option=history.settings.against_fall or one_in(3.0, history.settings.learning_rate),
    )


def identical_pairs(history: History) -> Measured | None:
    """The two completions of a pair are nearly the same text."""
    overlap = history.train.get("pairs/common_ends")
    if overlap is None:
        return None
    share = sum(overlap.values) / len(overlap.values)
    return Measured(
        value=share,
        threshold=OVERLAP,
        evidence=f"on average {share:.0%} of a pair's tokens are in a common prefix or suffix",
        meaning="The pairs differ in only a few tokens: they teach little, and their common tokens are easily lowered, too.",
        option=history.settings.against_overlap or one_in(3.0, history.settings.learning_rate),
    )


def margin_by_length(history: History) -> Measured | None:
    """Held-out margins follow the lengths of the completions."""
    series, bias, moved = (
        history.evaluation.get("length_correlation"),
        history.evaluation.get("length_bias"),
        _moved(history),
    )
    if series is None or bias is None or moved is None:
        return None
    chosen, rejected, _, _ = moved
    value, one_sided = series.values[-1], bias.values[-1]
    learned = "longer" if value > 0 else "shorter"
    return Measured(
        value=max(0.0, value * one_sided) if max(abs(chosen), abs(rejected)) >= MIN_FALL else 0.0,
        threshold=LENGTH_RULE,
        evidence=f"correlation {value:+.2f} of held-out margin and length difference; the chosen completion is longer "
        f"in {(1 + one_sided) / 2:.0%} of pairs",
        meaning=f"The policy has mostly learned to prefer the {learned} completion.",
        option=history.settings.against_length or one_in(3.0, history.settings.learning_rate),
    )


def saturated(history: History) -> Measured | None:
    """Training pairs are memorized and give no gradient, while held-out pairs are not learned."""
    accuracy, held = history.train.get("rewards/accuracies"), history.held_out("rewards/accuracies")
    loss = history.train.get("loss")
    if accuracy is None or loss is None or held is None or not history.has_trend:
        return None
    flat = accuracy.tail() >= FITTED and abs(loss.tail()) <= FLAT_LOSS_CHANGE * abs(loss.head())
    gap = accuracy.tail() - held.values[-1]
    return Measured(
        value=gap if flat else 0.0,
        threshold=GENERALISATION_GAP,
        evidence=f"training loss {loss.head():.3g} to {loss.tail():.3g}, accuracy {accuracy.tail():.2f}; held-out accuracy "
        f"{held.values[-1]:.2f}",
        meaning="The training pairs give no more gradient, and the policy does not generalize to held-out pairs.",
        option=_fewer_epochs(history),
    )


def overfitting(history: History) -> Measured | None:
    """Held-out quality falls while training improves."""
    trained, held = history.train.get("loss"), history.held_out("loss")
    if trained is None or held is None or not history.has_trend or trained.tail() >= trained.head():
        return None
    if min(held.values) > 0 and min(trained.values) > 0:
        return _loss_turned(history, trained, held)
    return _margin_turned(history, trained)


def _loss_turned(history: History, trained: Points, held: Points) -> Measured:
    """By the held-out loss. While as many pairs as before are ranked correctly, the policy is only overconfident."""
    best, last = min(held.values), held.values[-1]
    accuracy = history.held_out("rewards/accuracies")
    fell = accuracy is None or accuracy.values[-1] < max(accuracy.values) - 0.05
    return Measured(
        value=last / best - 1,
        threshold=HELD_OUT_LOSS,
        cap="act" if fell else "watch",
        evidence=f"training loss {trained.head():.3g} to {trained.tail():.3g}; held-out loss {best:.3g} at step "
        f"{held.steps[held.values.index(best)]}, now {last:.3g}",
        meaning=MEMORIZED,
        option=_fewer_epochs(history),
    )


def _margin_turned(history: History, trained: Points) -> Measured | None:
    """By the held-out margin, for losses that have no zero to be compared with."""
    chosen, rejected = history.held_out("log_ratios/chosen"), history.held_out("log_ratios/rejected")
    if chosen is None or rejected is None or chosen.steps != rejected.steps:
        return None
    margins = [c - r for c, r in zip(chosen.values, rejected.values, strict=True)]
    best = max(margins)
    return Measured(
        value=1 - margins[-1] / best if best >= MIN_FALL else 0.0,
        threshold=HELD_OUT_MARGIN,
        evidence=f"training loss {trained.head():.3g} to {trained.tail():.3g}; held-out margin {best:.2f} nats at its best, now "
        f"{margins[-1]:.2f}",
        meaning=MEMORIZED,
        option=_fewer_epochs(history),
    )


def _moved(history: History, trained: bool = False) -> tuple[float, float, float, float] | None:
    """Log-ratios now, and the sizes of the log-probabilities at the start: of chosen, rejected, chosen,
    rejected.

    Of held-out completions where there are any, unless those of training are requested. Samples of the policy
    are others at every step, so that their log-ratios do not show how a completion changed.
    """
    if history.settings.on_policy or not history.has_trend:
        return None
    seen = replace(history, evaluation={}) if trained else history
    numbers = [seen.now(f"log_ratios/{side}") for side in ("chosen", "rejected")]
    sizes = [seen.start(f"logps/{side}") for side in ("chosen", "rejected")]
    found = [one for one in (*numbers, *sizes) if one is not None]
    if len(found) < 4 or not (found[2] < 0 and found[3] < 0):
        return None
    return found[0], found[1], -found[2], -found[3]


def _fewer_epochs(history: History) -> str:
    """Up to the best evaluation; where that is the first or the last one, smaller steps."""
    held = history.held_out("loss")
    best = held.steps[held.values.index(min(held.values))] if held is not None else 0
    return f"--max_steps {best}" if 0 < best < history.step else one_in(3.0, history.settings.learning_rate)
