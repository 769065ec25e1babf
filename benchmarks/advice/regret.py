"""What a choice costs against the best one: the regret of advice, and of those who always choose alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.advice.contest import Arm, Raced

from preftune.errors import ConfigError

MIN_SPAN = 0.05  # of the reward's range: where less can be gained, regret would be a ratio of two noises


def span(raced: Raced) -> float:
    """What there was to gain: the best return less the reference's, at least `MIN_SPAN` of the reward's
    range.
    """
    return max(max(raced.returns.values()) - raced.start, MIN_SPAN * raced.full_range)


def regret(raced: Raced, choice: Arm) -> float:
    """(best return - return of the choice) / span: 0 for the best, 1 for what gains nothing, more for what
    harms.
    """
    if choice not in raced.returns:
        raise ConfigError(
            "This choice did not take part",
            got=f"{choice.objective}, {choice.source}",
            expected=", ".join(f"{c.objective} {c.source}" for c in raced.returns),
        )
    return (max(raced.returns.values()) - raced.returns[choice]) / span(raced)


def regret_of_range(raced: Raced, choice: Arm) -> float:
    """The same loss as a share of the reward's range, its highest value less its lowest."""
    return regret(raced, choice) * span(raced) / raced.full_range


@dataclass(frozen=True, kw_only=True)
class Habit:
    """Always the same: an objective on own samples wherever they can be had, and one on the data elsewhere.

    Without `on_policy` the data are used everywhere.
    """

    on_policy: str | None
    offline: str

    def choice(self, raced: Raced) -> Arm:
        if self.on_policy is not None:
            choice = Arm(source="on-policy", objective=self.on_policy)
            if choice in raced.returns:
                return choice
        return Arm(source="offline", objective=self.offline)

    def __str__(self) -> str:
        first = f"{self.on_policy} on-policy where possible, else " if self.on_policy else ""
        return f"{first}{self.offline} offline"


def habits(races: Sequence[Raced]) -> tuple[Habit, ...]:
    """Every habit that can be kept on all of these problems."""
    everywhere = set.intersection(
        *({c.objective for c in raced.returns if c.source == "offline"} for raced in races)
    )
    somewhere = {c.objective for raced in races for c in raced.returns if c.source == "on-policy"}
    return tuple(
        Habit(on_policy=on, offline=off) for off in sorted(everywhere) for on in (None, *sorted(somewhere))
    )


def summary(regrets: Sequence[float]) -> Mapping[str, float]:
    """Median, 90th percentile and mean, and the share of problems with at most 5% of regret."""
    values = np.asarray(regrets, dtype=float)
    return {
        "median": round(float(np.median(values)), 4),
        "p90": round(float(np.quantile(values, 0.9)), 4),
        "mean": round(float(values.mean()), 4),
        "share_within_5_percent": round(float((values <= 0.05).mean()), 4),
    }
