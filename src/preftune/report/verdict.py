"""Which of several runs is better, in one sentence, or that they cannot be distinguished."""

from collections.abc import Sequence

import numpy as np

from preftune.report.read import RunFiles
from preftune.stats import Interval, cluster_means, paired_interval, share_difference, share_interval
from preftune.text import describe, percent, plural, range_text, signed_text, value_text

_HELD_OUT_BY = ("data", "eval_data", "eval_fraction", "seed", "rows", "source")
"""Settings that determine the held-out data."""


def accuracy_interval(run: RunFiles) -> Interval | None:
    """The last held-out accuracy with Wilson's interval; None where the number of held-out prompts is not noted."""
    accuracy, count = run.evaluation.get("rewards/accuracies"), run.environment.get("held_out")
    if accuracy is None or not isinstance(count, int) or count < 1 or not 0 <= accuracy.last <= 1:
        return None
    return share_interval(np.full(count, accuracy.last))


def comparison_verdict(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """The measure is the reward of samples of the same prompts, or the accuracy on the same held-out pairs."""
    if len(runs) < 2:
        return ""
    means = [_reward_means(run) for run in runs]
    common = sorted(set.intersection(*(set(one) for one in means)))
    if common:
        return _by_reward(names, [[one[prompt] for prompt in common] for one in means], common)
    differing = [name for name in _HELD_OUT_BY if len({describe(run.config.get(name)) for run in runs}) > 1]
    if all("rewards/accuracies" in run.evaluation for run in runs):
        if differing:
            return (
                f"The runs held out different pairs, because {differing[0]} differs: their accuracies do not show "
                "which run is better. Evaluate each with: preftune eval RUN --data FILE."
            )
        return _by_accuracy(runs, names)
    rewards = [run.evaluation["reward"].last if "reward" in run.evaluation else None for run in runs]
    known = [(reward, name) for reward, name in zip(rewards, names, strict=True) if reward is not None]
    if len(known) == len(runs) and not differing:
        (best, name), (second, other) = sorted(known, reverse=True)[:2]
        return (
            f"{name} ends with the highest held-out reward, {value_text(best)}; {other} follows with "
            f"{value_text(second)}. The logs give no interval, so the runs cannot be distinguished. Measure one with: "
            "preftune eval RUN --prompts FILE --reward NAME."
        )
    return "The runs share no measure that shows which is better. Evaluate each with: preftune eval RUN --data FILE."


def _reward_means(run: RunFiles) -> dict[int, float]:
    """Prompt -> mean reward after training."""
    chosen = [(s.prompt_index, s.reward) for s in run.samples if s.stage == "after" and s.reward is not None]
    prompts = [prompt for prompt, _ in chosen]
    if not chosen:
        return {}
    found = cluster_means([reward for _, reward in chosen], prompts)
    return dict(zip(sorted(set(prompts)), found.tolist(), strict=True))


def _by_reward(names: Sequence[str], rewards: Sequence[Sequence[float]], prompts: Sequence[int]) -> str:
    order = sorted(range(len(names)), key=lambda k: -float(np.mean(rewards[k])))
    best, second = order[:2]
    difference = paired_interval(rewards[second], rewards[best], list(prompts))
    what = (
        f"mean reward {value_text(float(np.mean(rewards[best])))} against {value_text(float(np.mean(rewards[second])))}, "
        f"over the same {plural(len(prompts), 'prompt')}"
    )
    return _sentence(names[best], names[second], what, difference)


def _by_accuracy(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    last = [run.evaluation["rewards/accuracies"].last for run in runs]
    best, second = sorted(range(len(runs)), key=lambda k: -last[k])[:2]
    what = f"held-out accuracy {percent(last[best])} against {percent(last[second])}"
    mine, other = accuracy_interval(runs[best]), accuracy_interval(runs[second])
    if mine is None or other is None:
        return (
            f"{names[best]} and {names[second]} cannot be distinguished: {what}, without an interval, because a run did "
            "not note how many prompts it held out."
        )
    what += f", of {plural(mine.num, 'held-out prompt')}"
    return _sentence(names[best], names[second], what, share_difference(mine, other))


def _sentence(best: str, second: str, what: str, difference: Interval) -> str:
    sure = difference.num > 1 and difference.low > 0
    interval = (
        f"difference {signed_text(difference.mean)}, 95% interval {range_text(difference, signed=True)}"
        if difference.num > 1
        else "one prompt gives no interval"
    )
    if sure:
        return f"{best} is better than {second}, the next best: {what} ({interval})."
    return f"{best} and {second} cannot be distinguished: {what} ({interval}). More held-out data would narrow the interval."
