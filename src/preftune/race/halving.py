"""Racing: which run comes next, and which methods are tied best. Pure: scores in, trials and verdicts out.

Each method is tuned over the same grid of learning rates by successive halving (Jamieson and Talwalkar,
AISTATS 2016): every rate gets a small share of the budget, the better half of them twice as much, until one
is left. That rate then has the full budget on every confirming seed, none of which was used in tuning. A
trial starts afresh: it resumes no other trial.

Methods are compared seed by seed, since runs of one seed have the same held-out data and the same order. A
method is tied with the best one (the highest mean) if the interval of its paired difference does not exclude
zero. Differences are Student's t; the number of comparisons is paid for by Holm's rule, so that the chance of
leaving out any method that is as good as the best is at most 5% in all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.errors import ConfigError, check_range
from preftune.stats import Interval, mean_interval

ALPHA = 0.05
"""Chance of an error over all comparisons with the best method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run: a method at a learning rate, with a share of the full budget, on a seed."""

    method: str
    rate: float
    share: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A round of tuning: the number of rates, and each rate's share of the full budget."""

    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Race:
    """Methods, learning rates and seeds of a race. Without `halving` every rate has the full budget at once."""

    methods: tuple[str, ...]
    rates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    halving: bool = True

    def __post_init__(self) -> None:
        if len(self.seeds) < 2:
            raise ConfigError(
                "One seed gives no interval", got=f"seeds {len(self.seeds)}", expected="2 or more"
            )
        if set(self.seeds) & set(self.tuning_seeds):
            raise ConfigError(
                "A confirming seed was used for tuning",
                got=sorted(set(self.seeds) & set(self.tuning_seeds))[0],
            )
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError("A race has methods, each once", got=", ".join(self.methods) or "none")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise ConfigError(
                "A learning rate is out of range", got=list(self.rates), expected="numbers above 0"
            )
        if len({f"{rate:g}" for rate in self.rates}) < len(self.rates):
            raise ConfigError("A learning rate is given twice", got=list(self.rates), do="Leave one out")

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The last rung has half the budget, each earlier one half of the next one's; no rung for a single
        rate.
        """
        count = len(self.rates)
        if count == 1:
            return ()
        if not self.halving:
            return (Rung(count=count, share=1.0),)
        number = math.ceil(math.log2(count))
        return tuple(Rung(count=-(-count // 2**r), share=2.0 ** (r - number)) for r in range(number))

    @property
    def num_trials(self) -> int:
        """Number of trials of all methods, if none fails."""
        tuning = sum(rung.count for rung in self.rungs) * len(self.tuning_seeds)
        return len(self.methods) * (tuning + len(self.seeds))

    @property
    def smallest_share(self) -> float:
        return min([1.0, *(rung.share for rung in self.rungs)])


def check_tuning_seeds(options: Any) -> None:
    """Check the seeds of settings with `first_seed` and `tuning_seeds`: tuning uses the seeds right below it."""
    check_range(options, "[1, inf)", "tuning_seeds")
    check_range(
        options,
        f"[{options.tuning_seeds}, {2**62})",
        "first_seed",
        expected=f"{options.tuning_seeds} or more, less than 2**62",
        do="Tuning uses the seeds right below it",
    )


def plan_race(
    methods: Sequence[str],
    rates: Sequence[float],
    *,
    seeds: int,
    first_seed: int,
    tuning_seeds: int,
    halving: bool = True,
) -> Race:
    """A race on the seeds from `first_seed` on, tuned on those right below it; a single rate is not tuned."""
    return Race(
        methods=tuple(methods),
        rates=tuple(rates),
        halving=halving,
        tuning_seeds=tuple(range(first_seed - tuning_seeds, first_seed)) if len(rates) > 1 else (),
        seeds=tuple(range(first_seed, first_seed + seeds)),
    )


def check_budget(race: Race, amount: float, smallest_part: float, name: str) -> None:
    """Refuses a budget of which the first round of tuning has nothing."""
    if smallest_part <= 0:
        raise ConfigError(
            f"{name} is too small for the first round of tuning",
            got=amount,
            expected=f"{1 / race.smallest_share:g} or more",
            do="Raise it, or try fewer --rates",
        )


Scores = Mapping[Trial, float | None]
"""Higher is better; None is a run that failed."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a method is: the trials that it waits for, and its rate once that is settled (None then: every
    rate failed).
    """

    waiting: tuple[Trial, ...]
    tuned: bool
    rate: float | None

    @property
    def is_done(self) -> bool:
        return not self.waiting


def standing(race: Race, method: str, scores: Scores) -> Standing:
    """A rate that fails on a tuning seed is out; of equal rates the lower one continues."""
    rates, rungs = race.rates, race.rungs
    for number, rung in enumerate(rungs):
        tried = {
            rate: [Trial(method=method, rate=rate, share=rung.share, seed=seed) for seed in race.tuning_seeds]
            for rate in rates
        }
        waiting = tuple(trial for trials in tried.values() for trial in trials if trial not in scores)
        if waiting:
            return Standing(waiting=waiting, tuned=False, rate=None)
        ranked = rank_rates({rate: [scores[trial] for trial in trials] for rate, trials in tried.items()})
        rates = ranked[: rungs[number + 1].count if number + 1 < len(rungs) else 1]
        if not rates:
            return Standing(waiting=(), tuned=True, rate=None)
    waiting = tuple(trial for trial in confirming(race, method, rates[0]) if trial not in scores)
    return Standing(waiting=waiting, tuned=True, rate=rates[0])


def rank_rates(scores: Mapping[float, Sequence[float | None]]) -> tuple[float, ...]:
    """Rates by their mean score over tuning seeds, the best first, without those that failed on a seed; of
    equal rates the lower one comes first.
    """
    means = {rate: mean_score(of) for rate, of in scores.items()}
    return tuple(
        rate for _, rate in sorted((-mean, rate) for rate, mean in means.items() if mean is not None)
    )


def confirming(race: Race, method: str, rate: float) -> tuple[Trial, ...]:
    """The runs that count."""
    return tuple(Trial(method=method, rate=rate, share=1.0, seed=seed) for seed in race.seeds)


def mean_score(scores: Sequence[float | None]) -> float | None:
    """None where any run failed."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def next_trials(race: Race, scores: Scores) -> tuple[Trial, ...]:
    """Trials that can run now, in the order of the methods; none when the race is over."""
    return tuple(trial for method in race.methods for trial in standing(race, method, scores).waiting)


def models_wanted(race: Race, scores: Scores) -> frozenset[Trial]:
    """The confirming runs whose model may yet be the best: the best run of the method that leads among those
    that are done, and of each method that is under way.
    """
    found: list[tuple[bool, float, Trial]] = []
    for method in race.methods:
        place = standing(race, method, scores)
        if place.rate is None:
            continue
        trials = confirming(race, method, place.rate)
        known = [
            (score, -k, trial) for k, trial in enumerate(trials) if (score := scores.get(trial)) is not None
        ]
        mean = mean_score([scores.get(trial) for trial in trials])
        if known and (mean is not None or place.waiting):
            found.append((place.is_done, mean or 0.0, max(known, key=lambda one: one[:2])[2]))
    leading = max((mean for done, mean, _ in found if done), default=None)
    first = next((trial for done, mean, trial in found if done and mean == leading), None)
    return frozenset({trial for done, _, trial in found if not done} | ({first} if first else set()))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A method at the end of the race.

    `behind` is best - method by seed, at the `level` that Holm's rule gives its interval; None for the best
    one. A method with a run that failed has no mean and is not tied.
    """

    method: str
    mean: Interval | None
    behind: Interval | None
    level: float | None
    tied: bool


def places(scores: Mapping[str, Sequence[float | None]]) -> tuple[Place, ...]:
    """Methods by their mean, the best first; those that failed at the end. Entry i of each is of the same
    seed.
    """
    known = {
        name: [one for one in of if one is not None] for name, of in scores.items() if of and None not in of
    }
    ranked = sorted(known, key=lambda name: -sum(known[name]) / len(known[name]))
    if not ranked:
        return tuple(Place(method=name, mean=None, behind=None, level=None, tied=False) for name in scores)
    best = known[ranked[0]]
    behind = holm({name: [a - b for a, b in zip(best, known[name], strict=True)] for name in ranked[1:]})
    found = [Place(method=ranked[0], mean=mean_interval(best), behind=None, level=None, tied=True)]
    for name in ranked[1:]:
        interval, level = behind[name]
        found.append(
            Place(
                method=name,
                mean=mean_interval(known[name]),
                behind=interval,
                level=level,
                tied=not interval.excludes_zero,
            )
        )
    failed = [
        Place(method=name, mean=None, behind=None, level=None, tied=False)
        for name in scores
        if name not in known
    ]
    return (*found, *failed)


def holm(
    differences: Mapping[str, Sequence[float]], alpha: float = ALPHA
) -> dict[str, tuple[Interval, float]]:
    """Intervals of paired differences that exclude zero exactly where Holm's step-down rule rejects
    (Scandinavian Journal of Statistics 1979), each with its level.

    The difference furthest from zero, in standard errors, is tested at level 1 - alpha / m, the next one at
    1 - alpha / (m - 1), and so on; from the first one that includes zero the level stays as it is.
    """
    order = sorted(differences, key=lambda name: -_errors_from_zero(differences[name]))
    found: dict[str, tuple[Interval, float]] = {}
    stopped: float | None = None
    for rank, name in enumerate(order):
        level = 1 - alpha / (len(order) - rank) if stopped is None else stopped
        interval = mean_interval(differences[name], level)
        if not interval.excludes_zero:
            stopped = level
        found[name] = interval, level
    return found


def _errors_from_zero(values: Sequence[float]) -> float:
    """|mean| in standard errors, up to a factor that all have in common; infinite for a constant that is not
    zero.
    """
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values))
    return abs(mean) / spread if spread else math.inf if mean else 0.0
