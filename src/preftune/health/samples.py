"""Conditions of runs on the policy's own samples: equal rewards, reward hacking, distance from the reference,
staleness.
"""

import math
import statistics

from preftune.health.history import WINDOW, History, Points
from preftune.health.verdict import Measured, Threshold, one_in, worst_measured

LENGTH_DRIFT = Threshold(
    measures="factor by which the length of held-out samples has changed, in either direction",
    watch=1.6,
    act=2.5,
    reason="answers to a task have a typical length; sampling noise changes the mean of a few dozen samples by 10% to 20%",
)
KL_PER_TOKEN = Threshold(
    measures="KL to the reference, in nats per token",
    watch=0.5,
    act=1.5,
    reason="at 0.5 nats per token the policy is far from what the reference writes: every second token choice differs",
)
ENTROPY_LOST = Threshold(
    measures="share of the entropy per token that is lost",
    watch=0.6,
    act=0.9,
    reason="some loss is part of learning; below 10% of its entropy the policy gives the same answer to every prompt and no longer explores",
)
EQUAL_REWARDS = Threshold(
    measures="share of prompts whose completions all have the same reward",
    watch=0.5,
    act=0.9,
    reason="they cost samples and give no gradient: at one half, every step costs twice as much as needed",
)
SIGNS_OF_HACKING = Threshold(
    measures="signs in addition to a rising reward",
    watch=1.0,
    act=2.0,
    reason="one sign may be the task itself (a reward for brevity shortens answers); two together are rarely intended",
)
STALENESS = Threshold(
    measures="steps between sampling a completion and training on it",
    watch=8.0,
    act=32.0,
    reason="in the laboratory, replay of samples helps for a few passes and then hurts; this objective has no importance ratio to correct it",
)
CLIPPED = Threshold(
    measures="share of ratios without gradient because of clipping",
    watch=0.2,
    act=0.5,
    reason="fresh samples have none; from 20% on, much of every collection is wasted",
)
SAMPLER_GAP = Threshold(
    measures="mean difference of the sampler's and the trainer's log-probability, in nats per token",
    watch=0.08,
    act=0.2,
    reason="rounding causes 1e-5 in fp32 and up to 0.05 in bf16; above that they are different models",
)
FEW_TOKENS = 2.0
"""Samples of at most so many tokens carry no information. Above it, shortening is only watched, because many
rewards intend it.
"""
MIN_RISE = 0.5
"""Standard deviations of a collection's rewards by which the reward must have risen to count as risen."""
FEWER_ENDED = 0.2
"""Fall of the share of completions that end within their budget that counts as a sign."""


def length_drift(history: History) -> Measured | None:
    """The policy's samples become much longer, or much shorter."""
    ends = _ends(history, "completions/length")
    if ends is None or min(ends) <= 0:
        return None
    first, last = ends
    paid = history.train.get("collect/length_correlation")
    because = f", reward and length correlate {paid.tail():+.2f} within a prompt" if paid is not None else ""
    longer, reward = last > first, history.settings.reward
    return Measured(
        value=max(last / first, first / last),
        threshold=LENGTH_DRIFT,
        cap="act" if longer or last <= FEW_TOKENS else "watch",
        evidence=f"length of samples {first:.1f} to {last:.1f} tokens{because}",
        meaning=f"The policy gains reward by {'length' if longer else 'brevity'}. Unless that is the task, this is reward hacking.",
        option=_priced(reward) if longer else _closer(history, 3.0),
    )


def kl_blow_up(history: History) -> Measured | None:
    """The policy moves far away from its reference."""
    kl, length = history.held_out("kl"), history.held_out("completions/length")
    if kl is None or length is None or not history.has_trend:
        return None
    return Measured(
        value=kl.values[-1] / max(length.values[-1], 1.0),
        threshold=KL_PER_TOKEN,
        evidence=f"KL {kl.values[-1]:.2f} nats over {length.values[-1]:.1f} tokens per completion",
        meaning="The policy writes what the reference would almost never write, and loses abilities of the reference.",
        option=_closer(history, 10.0),
    )


def entropy_collapse(history: History) -> Measured | None:
    """The policy always writes the same text."""
    entropy = history.held_out("entropy")
    if entropy is None or entropy.values[0] <= 0 or not history.has_trend:
        return None
    first, last = entropy.values[0], entropy.values[-1]
    return Measured(
        value=1 - last / first,
        threshold=ENTROPY_LOST,
        evidence=f"entropy {first:.3f} to {last:.3f} nats per token",
        meaning="The samples of a prompt become identical, and completions that are never sampled cannot be learned.",
        option=_closer(history, 3.0),
    )


def equal_rewards(history: History) -> Measured | None:
    """The completions of a prompt all have the same reward and give no gradient."""
    shares, spread = history.train.get("collect/equal_rewards"), history.train.get("reward/std")
    if shares is not None:
        value = shares.tail()
    elif spread is not None:  # of runs that did not log the share: steps in which no prompt had any spread
        value = sum(one <= 1e-9 for one in spread.values[-10:]) / len(spread.values[-10:])
    else:
        return None
    wanted, temperature = history.settings.num_completions, history.settings.temperature
    cold = history.settings.on_policy and temperature is not None and 0 < temperature < 1
    return Measured(
        value=value,
        threshold=EQUAL_REWARDS,
        evidence=f"{value:.0%} of prompts have equal rewards"
        + (f", sampled at temperature {temperature:g}" if cold else ""),
        meaning="Most samples give no gradient: the reward is too coarse, or the prompts are too easy or too hard.",
        option="--sampling.temperature 1"
        if cold
        else f"--sampling.num_completions {2 * wanted}"
        if history.settings.on_policy and wanted
        else "--batch_size, larger",
    )


def reward_hacking(history: History) -> Measured | None:
    """The reward rises while something else that it should keep goes wrong."""
    reward, spread = history.train.get("collect/reward"), history.train.get("collect/reward_std")
    if reward is None or spread is None or not history.has_trend:
        return None
    scale = max(spread.head(), 1e-9)
    rise = (reward.tail() - reward.head()) / scale
    signs = _signs(history, scale) if rise >= MIN_RISE else []
    seen = ", ".join(signs) if signs else "no other sign"
    return Measured(
        value=float(len(signs)),
        threshold=SIGNS_OF_HACKING,
        evidence=f"reward {reward.head():.3g} to {reward.tail():.3g} ({rise:+.1f} standard deviations); {seen}",
        meaning="The reward may be rising for unintended reasons: read some samples before trusting it.",
        option=_closer(history, 10.0),
    )


def stale_samples(history: History) -> Measured | None:
    """What is learned from was drawn by a policy that is no longer this one, or by a sampler that differs."""
    steps, clipped, gap = (history.train.get(name) for name in ("staleness", "ratio/clipped", "sampler_gap"))
    settings, found = history.settings, []
    fresh = None if clipped is None or steps is None else _when_fresh(clipped, steps)
    if fresh is not None and fresh >= CLIPPED.watch:
        found.append(_two_distributions(history, fresh))
    elif clipped is not None:
        found.append(
            Measured(
                value=clipped.tail(),
                threshold=CLIPPED,
                evidence=f"{clipped.tail():.0%} of ratios are clipped",
                meaning="The policy has moved away from the samples, and clipping removes their gradient.",
                option=_fresher(history),
            )
        )
    elif steps is not None:
        age = statistics.fmean(steps.values)
        found.append(
            Measured(
                value=age,
                threshold=STALENESS,
                evidence=f"samples are {age:.1f} steps old on average",
                meaning="The policy trains on samples of an earlier policy, and this objective does not correct for it.",
                option=_fresher(history),
            )
        )
    if gap is not None:
        found.append(
            Measured(
                value=max(gap.values),
                threshold=SAMPLER_GAP,
                evidence=f"sampler and trainer differ by up to {max(gap.values):.2g} nats per token",
                meaning="The sampler's distribution differs from the trainer's, so training is not really on-policy.",
                option="--precision fp32",
            )
        )
    if not found or not settings.on_policy:
        return None
    return worst_measured(found)


def _when_fresh(series: Points, staleness: Points) -> float | None:
    """Mean of a metric over the last steps on samples that the policy at that step drew; None without any."""
    age = dict(zip(staleness.steps, staleness.values, strict=True))
    values = [
        value for step, value in zip(series.steps, series.values, strict=True) if age.get(step, math.inf) == 0
    ]
    return statistics.fmean(values[-WINDOW:]) if values else None


def _two_distributions(history: History, clipped: float) -> Measured:
    """Fresh samples have ratio 1 unless policy and samples were scored under two distributions."""
    temperature = history.settings.temperature
    hot = temperature is not None and temperature != 1
    return Measured(
        value=clipped,
        threshold=CLIPPED,
        evidence=f"{clipped:.0%} of the ratios of fresh samples are clipped"
        + (f", sampled at temperature {temperature:g}" if hot else ""),
        meaning="The sampling temperature differs from the temperature of scoring: ratios do not start at 1."
        if hot
        else "The sampler's distribution differs from the one that the trainer scores: ratios do not start at 1.",
        option="--sampling.temperature 1" if hot else "--precision fp32",
    )


def _ends(history: History, name: str) -> tuple[float, float] | None:
    """A metric of the samples at the start and now: of held-out prompts, or of the collections."""
    if not history.has_trend:
        return None
    held, drawn = history.held_out(name), history.train.get(name)
    if held is not None:
        return held.values[0], held.values[-1]
    return (drawn.head(), drawn.tail()) if drawn is not None else None


def _signs(history: History, scale: float) -> list[str]:
    """Signs in addition to the reward."""
    names = {length_drift: "length", kl_blow_up: "KL", entropy_collapse: "entropy"}
    signs = [
        name
        for measure, name in names.items()
        if (found := measure(history)) is not None and found.level != "ok"
    ]
    ended, held = _ends(history, "completions/ended"), history.held_out("reward")
    if ended is not None and ended[0] - ended[1] >= FEWER_ENDED:
        signs.append("fewer completions end")
    if held is not None and held.values[0] - held.values[-1] >= MIN_RISE * scale:
        signs.append("the held-out reward falls")
    return signs


def _closer(history: History, factor: float) -> str:
    """What keeps the policy near its reference: beta, for objectives that have one; otherwise smaller steps."""
    beta = history.settings.beta
    return f"--objective.beta {factor * beta:.2g}" if beta else one_in(factor, history.settings.learning_rate)


def _priced(reward: str | None) -> str:
    """The reward with a share of one for short answers that end."""
    return f"--reward '{reward} + 0.5*brief'" if reward else "--reward with brief as one term"


def _fresher(history: History) -> str:
    settings = history.settings
    for name, value, least in (
        ("lag", settings.lag, 0),
        ("replay", settings.replay, 0),
        ("epochs", settings.collect_epochs, 1),
    ):
        if value > least:
            return f"--collect.{name} {value // 2 if value // 2 >= least else least}"
    return (
        f"--collect.prompts {settings.batch_size}"
        if settings.batch_size
        else one_in(3.0, settings.learning_rate)
    )
