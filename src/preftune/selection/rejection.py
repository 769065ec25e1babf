"""Statistical rejection sampling (RSO): completions accepted by their reward, then paired. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from preftune.errors import ConfigError
from preftune.selection.choices import (
    NO_PAIR,
    Choice,
    GroupRewards,
    Known,
    Makes,
    Selected,
    choose_each,
    kept,
    known_rewards,
    out_of_range,
    paired,
)

Ranking = Literal["first-round", "tournament", "none"]


@dataclass(frozen=True, kw_only=True)
class RSO:
    """Statistical rejection sampling, then pairs: completions as if drawn from pi(y|x) exp(r / temperature) /
    Z.

    Completions are visited in random order; one is accepted with probability exp((r - max r) / temperature),
    where the maximum is over those not accepted yet; passes continue until `num_kept` are accepted, none twice.
    With many candidates the accepted completions follow the distribution above; with few, the known maximum is too
    low and they are nearer to pi. Liu et al., "Statistical Rejection Sampling Improves Preference
    Optimization", ICLR 2024, arXiv 2309.06657, algorithm 1 (the Python code of its appendix). Their
    code takes equal texts once;
    here a text that was drawn twice counts twice, as the distribution wants.

    Args:
        temperature: in units of the reward, above 0; small is greedy.
        num_kept: completions to accept per group.
        ranking: which accepted completions meet: "first-round", two and two at random; "tournament", the winners
            again until one is left; "none" keeps the completions without pairs.
    """

    temperature: float = 0.5
    num_kept: int = 8
    ranking: Ranking = "first-round"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise out_of_range("rso", "temperature", self.temperature, "a number above 0")
        if self.ranking not in get_args(Ranking):
            raise out_of_range("rso", "ranking", self.ranking, " or ".join(get_args(Ranking)))
        least = 1 if self.ranking == "none" else 2
        if self.num_kept < least:
            raise out_of_range("rso", "num_kept", self.num_kept, f"at least {least}")

    @property
    def makes(self) -> Makes:
        return "labels" if self.ranking == "none" else "pairs"

    def __call__(self, rewards: Sequence[GroupRewards], seed: int = 0) -> Selected:
        largest = max(map(len, known_rewards(rewards)), default=0)
        if largest <= self.num_kept:
            raise ConfigError(
                "rso: no group has more completions with a reward than num_kept, so none would be rejected",
                got=f"num_kept {self.num_kept}, {largest} completions at most",
                do="Lower num_kept or draw more completions (the paper keeps 8 of 64)",
            )
        return choose_each(rewards, self.makes, seed, self._choose)

    def _choose(self, g: int, known: Known, random: np.random.Generator) -> Choice | str:
        accepted = rejection_sample(known, self.temperature, self.num_kept, random)
        if self.ranking == "none":
            return kept(accepted)
        pairs = _matches(
            accepted, known, random, rounds=1 if self.ranking == "first-round" else len(accepted)
        )
        return paired(pairs) if pairs else NO_PAIR


def rejection_sample(
    known: Known, temperature: float, num_kept: int, random: np.random.Generator
) -> list[int]:
    """`num_kept` completions (all, if there are no more) in the order of their acceptance; see `RSO`."""
    waiting, accepted = list(random.permutation(list(known))), []
    while waiting and len(accepted) < num_kept:
        top, rejected = max(known[k] for k in waiting), []
        for k in waiting:
            if len(accepted) < num_kept and random.random() < math.exp((known[k] - top) / temperature):
                accepted.append(int(k))
            else:
                rejected.append(k)
        waiting = rejected
    return accepted


def _matches(
    entrants: Sequence[int], known: Known, random: np.random.Generator, rounds: int
) -> list[tuple[int, int]]:
    """(winner, loser) of each match; equal rewards are no pair, and either continues."""
    pairs: list[tuple[int, int]] = []
    for _ in range(rounds):
        drawn = [int(k) for k in random.permutation(list(entrants))]
        matches = [sorted(two, key=lambda k: -known[k]) for two in zip(drawn[::2], drawn[1::2], strict=False)]
        pairs += [(winner, loser) for winner, loser in matches if known[winner] > known[loser]]
        entrants = [winner for winner, _ in matches] + drawn[2 * len(matches) :]
        if len(entrants) < 2:
            break
    return pairs
