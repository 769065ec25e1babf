"""From rewards to what is learned from: pairs, labels, or the completions worth keeping. Pure.

A selection sees the rewards of each group's completions and nothing else. Ties are broken at random by the
seed, so that the order of the completions plays no part; equal rewards are never a pair.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from preftune.errors import ConfigError
from preftune.selection.choices import (
    BELOW,
    NOT_BEST,
    ON_LINE,
    Choice,
    GroupRewards,
    Known,
    Makes,
    Selected,
    Selection,
    check_gap,
    choose_each,
    kept,
    known_rewards,
    no_gap,
    out_of_range,
    paired,
    ranked,
)
from preftune.selection.rejection import RSO
from preftune.spec import build, parse_term, suggestion

Scope = Literal["collection", "group"]

# --- completions worth keeping ---


@dataclass(frozen=True, kw_only=True)
class BestCompletion:
    """The best completion of each group: iterated best-of-N. Dong et al., "RAFT", 2023, arXiv 2304.06767."""

    @property
    def makes(self) -> Makes:
        return "labels"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        return choose_each(
            rewards, self.makes, seed, lambda _, known, random: kept(ranked(known, random)[:1])
        )


@dataclass(frozen=True, kw_only=True)
class TopFraction:
    """The best share of all completions, or of each group's: ceil(fraction * n) of n with a reward.

    Over the whole collection easy prompts win; within groups every prompt stays.

    Args:
        fraction: in (0, 1].
        scope: "collection" or "group".
    """

    fraction: float = 0.25
    scope: Scope = "collection"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise out_of_range("top-fraction", "fraction", self.fraction, "a number in (0, 1]")
        if self.scope not in get_args(Scope):
            raise out_of_range("top-fraction", "scope", self.scope, " or ".join(get_args(Scope)))

    @property
    def makes(self) -> Makes:
        return "labels"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        if self.scope == "group":
            return choose_each(
                rewards,
                self.makes,
                seed,
                lambda _, known, random: kept(ranked(known, random)[: self._share(len(known))]),
            )
        flat = [
            ((g, k), reward) for g, known in enumerate(known_rewards(rewards)) for k, reward in known.items()
        ]
        order = ranked({place: reward for place, (_, reward) in enumerate(flat)}, np.random.default_rng(seed))
        best = {flat[place][0] for place in order[: self._share(len(flat))]}

        def choose(g: int, known: Known, random: np.random.Generator) -> Choice | str:
            mine = [k for k in known if (g, k) in best]
            return kept(mine) if mine else NOT_BEST

        return choose_each(rewards, self.makes, seed, choose)

    def _share(self, count: int) -> int:
        return math.ceil(self.fraction * count - 1e-9)  # 0.1 * 30 is a little above 3


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Completions with a reward above a threshold that grows from one improvement step to the next.

    Gulcehre et al., "Reinforced Self-Training (ReST) for Language Modeling", 2023, arXiv 2308.08998, where
    one collection serves several improvement steps; the thresholds are on the scale of the rewards.

    Args:
        thresholds: strictly increasing, one per improvement step.
        improve_step: which of them is used, counted from 1.
    """

    thresholds: tuple[float, ...] = (0.0, 0.7, 0.8, 0.9, 0.95, 0.99)
    improve_step: int = 1

    def __post_init__(self) -> None:
        growing = all(a < b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not (self.thresholds and growing and all(map(math.isfinite, self.thresholds))):
            raise out_of_range("rest", "thresholds", self.thresholds, "numbers, each above the one before")
        if not 1 <= self.improve_step <= len(self.thresholds):
            raise out_of_range(
                "rest", "improve_step", self.improve_step, f"1 to {len(self.thresholds)}, one per threshold"
            )

    @property
    def makes(self) -> Makes:
        return "labels"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        threshold = self.thresholds[self.improve_step - 1]

        def choose(g: int, known: Known, random: np.random.Generator) -> Choice | str:
            above = [k for k, reward in known.items() if reward > threshold]
            return kept(above) if above else BELOW

        return choose_each(rewards, self.makes, seed, choose)


# --- pairs ---


@dataclass(frozen=True, kw_only=True)
class BestVsWorst:
    """The best completion of a group against its worst: online DPO and its kin.

    Args:
        min_gap: smallest difference of the two rewards, in their units.
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_gap("best-vs-worst", self.min_gap)

    @property
    def makes(self) -> Makes:
        return "pairs"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        def choose(g: int, known: Known, random: np.random.Generator) -> Choice | str:
            order = ranked(known, random)
            return no_gap(known, self.min_gap) or paired([(order[0], order[-1])])

        return choose_each(rewards, self.makes, seed, choose)


@dataclass(frozen=True, kw_only=True)
class AllPairs:
    """Every two completions of a group whose rewards differ by at least `min_gap`.

    Args:
        min_gap: smallest difference of the two rewards, in their units.
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_gap("all-pairs", self.min_gap)

    @property
    def makes(self) -> Makes:
        return "pairs"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        def choose(g: int, known: Known, random: np.random.Generator) -> Choice | str:
            apart = [
                (i, j)
                for i in known
                for j in known
                if known[i] > known[j] and known[i] - known[j] >= self.min_gap
            ]
            return no_gap(known, self.min_gap) or paired(apart)

        return choose_each(rewards, self.makes, seed, choose)


@dataclass(frozen=True, kw_only=True)
class BestVsLevel:
    """The best completion of a group against the one whose reward is nearest to mean + level * standard deviation.

    The worst of many samples is an easy contrast; two deviations below the mean is a better one. Xiao et al.,
    "Finding the Sweet Spot: Preference Data Construction for Scaling Preference Optimization", 2025, arXiv
    2502.16825. Mean and standard deviation (divisor: the number of rewards) are of the group.

    Args:
        level: in standard deviations from the mean, below the best completion's.
        min_gap: smallest difference of the two rewards, in their units.
    """

    level: float = -2.0
    min_gap: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.level):
            raise out_of_range("best-vs-level", "level", self.level, "a number")
        check_gap("best-vs-level", self.min_gap)

    @property
    def makes(self) -> Makes:
        return "pairs"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        def choose(g: int, known: Known, random: np.random.Generator) -> Choice | str:
            if reason := no_gap(known, self.min_gap):
                return reason
            order = ranked(known, random)
            values = np.array(list(known.values()))
            target = values.mean() + self.level * values.std()
            best = known[order[0]]
            lower = [k for k in order if known[k] < best and best - known[k] >= self.min_gap]
            return paired([(order[0], min(lower, key=lambda k: abs(known[k] - target)))])

        return choose_each(rewards, self.makes, seed, choose)


# --- labels ---


def _sided(known: Known, line: float, near: float) -> Choice | str:
    """+1 above the line, -1 below it, none on it."""
    labels = {k: 1 if reward > line else -1 for k, reward in known.items() if abs(reward - line) > near}
    return Choice(kept=tuple(labels), labels=tuple(labels.values())) if labels else ON_LINE


@dataclass(frozen=True, kw_only=True)
class LabelByThreshold:
    """+1 for a reward above the threshold, -1 for one below, for objectives that learn from labels.

    Args:
        threshold: in units of the reward.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise out_of_range("label-by-threshold", "threshold", self.threshold, "a number")

    @property
    def makes(self) -> Makes:
        return "labels"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        return choose_each(
            rewards, self.makes, seed, lambda _, known, __: _sided(known, self.threshold, 0.0), ON_LINE
        )


@dataclass(frozen=True, kw_only=True)
class LabelByMean:
    """+1 for a reward above the mean of its group, -1 for one below.

    Args:
        min_gap: smallest difference of the best and the worst reward of a group.
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_gap("label-by-mean", self.min_gap)

    @property
    def makes(self) -> Makes:
        return "labels"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        def choose(g: int, known: Known, random: np.random.Generator) -> Choice | str:
            values = known.values()
            rounding = 1e-9 * (max(values) - min(values))  # the mean of 0.1, 0.2 and 0.3 is not quite 0.2
            return no_gap(known, self.min_gap) or _sided(known, math.fsum(values) / len(values), rounding)

        return choose_each(rewards, self.makes, seed, choose, ON_LINE)


# --- groups ---


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """Groups whose rewards are not all equal: the others have no advantage, hence no gradient.

    The caller draws again for what is dropped. Yu et al., "DAPO", 2025, arXiv 2503.14476.
    """

    @property
    def makes(self) -> Makes:
        return "rewards"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        return choose_each(
            rewards, self.makes, seed, lambda _, known, __: no_gap(known, 0.0) or Choice(kept=tuple(known))
        )


SELECTIONS: Mapping[str, type[Selection]] = {
    "best-of-n": BestCompletion,
    "top-fraction": TopFraction,
    "rest": Rest,
    "rso": RSO,
    "best-vs-worst": BestVsWorst,
    "best-vs-level": BestVsLevel,
    "all-pairs": AllPairs,
    "label-by-threshold": LabelByThreshold,
    "label-by-mean": LabelByMean,
    "dynamic-sampling": DynamicSampling,
}


def make_selection(text: str, **given: object) -> Selection:
    """The selection that is written as "rso" or "rso(temperature=0.5)".

    A parameter in `given` that is None takes its default; one that the selection does not have is an error.
    """
    term = parse_term(text, "selection")
    name, kind = term.name, SELECTIONS.get(term.name)
    if kind is None:
        raise ConfigError(
            "There is no such selection",
            got=name,
            expected=", ".join(SELECTIONS),
            do=suggestion(name, SELECTIONS),
        )
    chosen = {key: value for key, value in given.items() if value is not None}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if idle := [key for key in chosen if key not in known]:
        raise ConfigError(
            f"{idle[0]} has no effect on the selection {name}",
            got=chosen[idle[0]],
            expected=", ".join(known) or "no parameters",
            do="Leave it out",
        )
    if twice := [key for key in chosen if key in term.settings]:
        raise ConfigError(f"{twice[0]} of the selection {name} is given twice", got=text, do="Leave one out")
    return build(kind, {**term.settings, **chosen}, f"selection {name!r}")
