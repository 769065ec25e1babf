"""CHES: how much the hidden states of a pair's completions overlap, which foretells that training moves both.
Pure.

Razin et al., "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization", 2024,
arXiv 2410.08847.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from preftune.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ches:
    """The scores of one pair; high means that training on it is likely to lower the chosen completion."""

    plain: float
    normalized: float  # by the numbers of tokens: pairs of different lengths compare


def ches(
    chosen: Float[np.ndarray, " H"], rejected: Float[np.ndarray, " H"], num_chosen: int, num_rejected: int
) -> Ches:
    """The centered hidden embedding similarity of a pair, in fp64.

        plain       <S_w, S_l> - |S_w|^2
        normalized  <S_w, S_l> / (n_w n_l) - |S_w|^2 / n_w^2

    with S the sum of the last layer's hidden states at the prompt's last token and at every token of the
    completion but the last (the positions that predict its tokens), and n the number of these positions.
    """
    if num_chosen < 1 or num_rejected < 1:
        raise DataError("CHES is of completions with tokens", got=f"{num_chosen} and {num_rejected} tokens")
    w, other = chosen.astype(np.float64), rejected.astype(np.float64)
    across, own = float(w @ other), float(w @ w)
    return Ches(plain=across - own, normalized=across / (num_chosen * num_rejected) - own / num_chosen**2)


def parse_filter(text: str) -> float:
    """The quantile in `ches<0.9`, the one filter of pairs that there is."""
    found = re.fullmatch(r"\s*ches\s*<\s*([0-9]*\.?[0-9]+)\s*", text)
    quantile = float(found[1]) if found else 0.0
    if not 0 < quantile < 1:
        raise ConfigError(
            "filter cannot be understood",
            got=text,
            expected="ches<Q with Q between 0 and 1",
            do='Write --filter "ches<0.9" to leave out the tenth of the pairs with the highest CHES',
        )
    return quantile


def below_quantile(scores: Sequence[float], quantile: float) -> tuple[float, Sequence[bool]]:
    """(the quantile of the scores, which of them are below it); between two scores the quantile is
    interpolated.
    """
    if not scores:
        raise DataError("There are no pairs to filter", expected="at least one")
    limit = float(np.quantile(np.asarray(scores, dtype=np.float64), quantile))
    return limit, [score < limit for score in scores]
