"""Conditions of any run: where it starts, and whether its steps are too large or too small."""

import statistics

from preftune.health.history import History
from preftune.health.verdict import Measured, Threshold, one_in, worst_measured

START = Threshold(
    measures="log-ratio before the first step, as a share of the completion's log-probability",
    watch=0.01,
    act=0.1,
    reason="policy and reference are equal at this point; the rounding error is 1e-6 of it in fp32 and below 0.001 in bf16",
)
CHOSEN_LOST = Threshold(
    measures="share of the log-probability that held-out completions lost, chosen and rejected alike",
    watch=0.5,
    act=1.0,
    reason="no preference requires completions of both kinds to become the square of their probability: the language model itself degrades",
)
LOSS_RISE = Threshold(
    measures="relative rise of the training loss over its initial value",
    watch=0.25,
    act=1.0,
    reason="with few pairs per step a smoothed loss varies by 10% to 20%; a loss above its initial value has learned nothing",
)
SPIKES = Threshold(
    measures="share of steps with more than twice the initial loss",
    watch=0.05,
    act=0.2,
    reason="5% of the steps cannot be explained by a single unusual pair",
)
GRADIENT = Threshold(
    measures="factor by which the gradient norm has grown",
    watch=10.0,
    act=100.0,
    reason="gradients of preference losses shrink as margins grow; tenfold growth means that the steps overshoot",
)
REWARD_FALL = Threshold(
    measures="fall of the reward of the collections, in standard deviations",
    watch=0.5,
    act=1.0,
    reason="training should raise the reward; means over ten collections vary by about 0.1 standard deviations",
)
MOVEMENT = Threshold(
    measures="absolute log-ratio of completions, in nats",
    watch=0.1,
    act=0.01,
    below=True,
    reason="0.1 nats change the odds of a whole completion by 10%, which is not visible in samples",
)
DISTANCE = Threshold(
    measures="KL of the samples to the reference, in nats per completion",
    watch=0.01,
    act=0.001,
    below=True,
    reason="0.01 nats are below the noise of the estimate",
)
LOSS_CHANGE = Threshold(
    measures="relative change of the training loss",
    watch=0.01,
    act=0.001,
    below=True,
    reason="less than the noise between two steps",
)
HALF_WAY = 0.5
"""Share of its steps after which a run that has not moved will not move: the schedule only falls from there.
"""
MIN_SPIKES = 2


def reference_mismatch(history: History) -> Measured | None:
    """Before the first step the policy is not its reference."""
    shares, seen = [], []
    for side in ("chosen", "rejected"):
        ratio, logp = history.start(f"log_ratios/{side}"), history.start(f"logps/{side}")
        if ratio is not None and logp:
            shares.append(abs(ratio / logp))
            seen.append(f"{side} {ratio:+.3g} nats")
    if not shares:
        return None
    other = history.settings.reference_model
    meaning = (
        "The reference is a different model, so all margins start with a difference that is not due to training."
        if other
        else "Policy and reference differ before training: margins and accuracies have the wrong zero."
    )
    return Measured(
        value=max(shares),
        threshold=START,
        evidence=f"log-ratio before the first step: {', '.join(seen)}",
        meaning=meaning,
        option="--reference.model, left out" if other else "--reference.mode live",
    )


def rate_high(history: History) -> Measured | None:
    """Steps overshoot: the loss rises or has spikes, gradients grow, both completions lose probability, or the
    reward falls."""
    if not history.has_trend:
        return None
    return worst_measured(
        [
            _text_lost(history),
            _loss_rise(history),
            _spikes(history),
            _gradient(history),
            _reward_fall(history),
        ]
    )


def _text_lost(history: History) -> Measured | None:
    shares, seen = [], []
    for side in ("chosen", "rejected"):
        ratio, logp = history.now(f"log_ratios/{side}"), history.start(f"logps/{side}")
        if ratio is None or not logp:
            return None
        shares.append(ratio / logp)
        seen.append(f"{side} {ratio:+.1f} of {logp:.1f} nats")
    if history.settings.on_policy:
        return None
    return Measured(
        value=max(0.0, min(shares)),
        threshold=CHOSEN_LOST,
        evidence=f"log-ratios: {', '.join(seen)}",
        meaning="Both sides of the pairs have lost most of their probability: the updates damage the model.",
        option=one_in(10.0, history.settings.learning_rate),
    )


def _loss_rise(history: History) -> Measured | None:
    """Of losses that mean something by their height: those of samples are near 0 whatever is learned."""
    loss = history.train.get("loss")
    if loss is None or min(loss.values) <= 0 or history.settings.on_policy:
        return None
    return Measured(
        value=loss.tail() / loss.values[0] - 1,
        threshold=LOSS_RISE,
        evidence=f"training loss {loss.values[0]:.3g} initially, {loss.tail():.3g} recently",
        meaning="The loss is higher than before training: the steps overshoot.",
        option=one_in(10.0, history.settings.learning_rate),
    )


def _spikes(history: History) -> Measured | None:
    loss = history.train.get("loss")
    if loss is None or min(loss.values) <= 0 or history.settings.on_policy:
        return None
    line = 2 * loss.values[0]
    count = sum(value > line for value in loss.values)
    return Measured(
        value=count / len(loss.values) if count >= MIN_SPIKES else 0.0,
        threshold=SPIKES,
        evidence=f"{count} of {len(loss.values)} steps had more than twice the initial loss",
        meaning="The loss has spikes: single steps undo the progress of many.",
        option=one_in(3.0, history.settings.learning_rate),
    )


def _gradient(history: History) -> Measured | None:
    norm = history.train.get("grad_norm")
    if norm is None:
        return None
    size = max(1, min(10, len(norm.values) // 3))
    first, last = statistics.median(norm.values[:size]), statistics.median(norm.values[-size:])
    return Measured(
        value=last / first if first > 0 else 0.0,
        threshold=GRADIENT,
        evidence=f"gradient norm {first:.3g} to {last:.3g}",
        meaning="Gradients grow from step to step: the policy moves to where the loss is steep.",
        option=one_in(10.0, history.settings.learning_rate),
    )


def _reward_fall(history: History) -> Measured | None:
    reward, spread = history.train.get("collect/reward"), history.train.get("collect/reward_std")
    if reward is None or spread is None:
        return None
    fall = (reward.head() - reward.tail()) / max(spread.head(), 1e-9)
    return Measured(
        value=fall,
        threshold=REWARD_FALL,
        evidence=f"reward {reward.head():.3g} to {reward.tail():.3g} ({-fall:+.1f} standard deviations)",
        meaning="The policy's reward is falling.",
        option=one_in(10.0, history.settings.learning_rate),
    )


def rate_low(history: History) -> Measured | None:
    """Half of the steps are done and nothing has moved."""
    share = history.share_done
    if not history.has_trend or share is None or share < HALF_WAY:
        return None
    option = one_in(0.1, history.settings.learning_rate)
    meaning = "At this rate the run ends almost where it started."
    done = f"after {min(share, 1.0):.0%} of the steps"
    kl = history.held_out("kl")
    if kl is not None:
        return Measured(
            value=abs(kl.values[-1]),
            threshold=DISTANCE,
            evidence=f"KL {kl.values[-1]:.2g} nats {done}",
            meaning=meaning,
            option=option,
        )
    chosen, rejected = history.now("log_ratios/chosen"), history.now("log_ratios/rejected")
    if chosen is not None and not history.settings.on_policy:
        moved = max(abs(chosen), abs(rejected or 0.0))
        return Measured(
            value=moved,
            threshold=MOVEMENT,
            evidence=f"log-ratios of at most {moved:.2g} nats {done}",
            meaning=meaning,
            option=option,
        )
    loss = history.train.get("loss")
    if loss is None or history.settings.on_policy or not loss.head():
        return None
    change = abs(loss.tail() / loss.head() - 1)
    return Measured(
        value=change,
        threshold=LOSS_CHANGE,
        evidence=f"the loss changed by {change:.2%} {done}",
        meaning=meaning,
        option=option,
    )
