"""What selections share: the choice of each group, what was left out, and how a group's rewards are looked
at. Pure.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from preftune.errors import ConfigError, DataError

Makes = Literal["pairs", "labels", "rewards"]
"""What an objective can learn from: pairs, labels (+1 for a completion that is merely kept), or the rewards
as they are.
"""
GroupRewards = Sequence[float | None]

NO_REWARD = "no reward"
SINGLE = "a single reward"
ALL_EQUAL = "all rewards are equal"
SMALL_GAP = "no gap of min_gap"
BELOW = "no reward above the threshold"
NOT_BEST = "none of the best of the collection"
ON_LINE = "reward equal to the mean or the threshold"
NO_PAIR = "no two of the sampled rewards differ"
NOT_CHOSEN = "not selected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What stays of one group: completions by number, ascending; pairs as (chosen, rejected); labels, one per
    kept one.
    """

    kept: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A choice for each group, None where the group is dropped, with everything that was left out counted by
    its reason.
    """

    choices: tuple[Choice | None, ...]
    makes: Makes
    dropped: Mapping[str, int]  # groups
    left_out: Mapping[str, int]  # completions of the groups that stay

    def counts(self) -> dict[str, int]:
        """Groups in and out, and what the groups that stay hold."""
        stay = [choice for choice in self.choices if choice is not None]
        labels = Counter(label for choice in stay for label in choice.labels)
        return {
            "groups_in": len(self.choices),
            "groups_out": len(stay),
            "completions_out": sum(len(c.kept) for c in stay),
            "pairs_out": sum(len(c.pairs) for c in stay),
            "preferred_out": labels[1],
            "dispreferred_out": labels[-1],
        }


@runtime_checkable
class Selection(Protocol):
    """One way to choose; its fields are its parameters."""

    @property
    def makes(self) -> Makes: ...

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected: ...


Known = Mapping[int, float]
Choose = Callable[[int, Known, np.random.Generator], Choice | str]


def known_rewards(rewards: Sequence[GroupRewards]) -> list[dict[int, float]]:
    """The rewards of each group that are there, by completion; one that is not finite is an error."""
    for g, group in enumerate(rewards):
        for k, reward in enumerate(group):
            if reward is not None and not math.isfinite(reward):
                raise DataError(
                    f"Completion {k + 1} of group {g + 1} has a reward that is no number",
                    got=reward,
                    expected="a finite number, or none",
                )
    return [{k: float(reward) for k, reward in enumerate(group) if reward is not None} for group in rewards]


def choose_each(
    rewards: Sequence[GroupRewards], makes: Makes, seed: int, choose: Choose, left: str = NOT_CHOSEN
) -> Selected:
    """`choose` for each group that has rewards: a choice, or the reason for none; `left` is why completions
    stay behind.

    A group's draws depend on the seed and its place only.
    """
    choices: list[Choice | None] = []
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for g, known in enumerate(known_rewards(rewards)):
        found = choose(g, known, np.random.default_rng([seed, g])) if known else NO_REWARD
        if isinstance(found, str):
            dropped[found] += 1
            choices.append(None)
            continue
        choices.append(found)
        left_out[NO_REWARD] += len(rewards[g]) - len(known)
        left_out[left] += len(known) - len(found.kept)
    return Selected(
        choices=tuple(choices),
        makes=makes,
        dropped=dict(dropped),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def ranked(known: Known, random: np.random.Generator) -> list[int]:
    """Completions from the best to the worst."""
    tie = dict(zip(known, random.permutation(len(known)), strict=True))
    return sorted(known, key=lambda k: (-known[k], tie[k]))


def kept(completions: Sequence[int]) -> Choice:
    """Completions worth imitating."""
    return Choice(kept=tuple(sorted(completions)), labels=(1,) * len(completions))


def paired(pairs: Sequence[tuple[int, int]]) -> Choice:
    return Choice(kept=tuple(sorted({k for pair in pairs for k in pair})), pairs=tuple(pairs))


def no_gap(known: Known, min_gap: float) -> str:
    """Why no pair can be made; empty if one can."""
    if len(known) < 2:
        return SINGLE
    spread = max(known.values()) - min(known.values())
    return ALL_EQUAL if spread == 0 else SMALL_GAP if spread < min_gap else ""


def out_of_range(name: str, parameter: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name}: {parameter} is out of range", got=value, expected=expected)


def check_gap(name: str, min_gap: float) -> None:
    if not 0 <= min_gap < math.inf:
        raise out_of_range(name, "min_gap", min_gap, "a number, 0 or above")
