"""What objectives on pairs share: sides, differences, the likelihood term, and how the result is handed back."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from preftune.objectives.base import mean_tokens, score_metrics, sum_tokens
from preftune.types import Float, Hybrid, Int, Losses, Pairs, TokenScores

NLLScale = Literal["sum", "mean"]
"""Whether a likelihood term is the sum or the mean over the tokens of a completion: a factor of its length.
"""
NLL_SCALES = get_args(NLLScale)


def pair_weights(signal: Pairs | Hybrid) -> Float[Tensor, " P"]:
    """One per pair."""
    return torch.ones(signal.chosen.shape, dtype=torch.get_default_dtype(), device=signal.chosen.device)


def pairs_of(signal: Hybrid) -> Pairs:
    """The pairs of a hybrid signal."""
    return Pairs(chosen=signal.chosen, rejected=signal.rejected)


def pair_sides(
    values: Float[Tensor, "C ..."], signal: Pairs
) -> tuple[Float[Tensor, "P ..."], Float[Tensor, "P ..."]]:
    """A completion's value, of the chosen and of the rejected completion of each pair."""
    return values[signal.chosen], values[signal.rejected]


def pair_margin(values: Float[Tensor, "C ..."], signal: Pairs) -> Float[Tensor, "P ..."]:
    """Value of the chosen completion minus that of the rejected one."""
    return values[signal.chosen] - values[signal.rejected]


def pair_lengths(lengths: Int[Tensor, " C"], signal: Pairs) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Tokens of the chosen and of the rejected completion of each pair."""
    return lengths[signal.chosen], lengths[signal.rejected]


def flip_chance(signal: Pairs, label_smoothing: float, dtype: torch.dtype) -> float | Float[Tensor, " P"]:
    """The chance that a pair is the wrong way round: by its probability p, by a wrong label of chance e, but
    not by both.

    e p + (1 - e) (1 - p), and e itself where the data give no p.
    """
    if signal.probability is None:
        return label_smoothing
    probability = signal.probability.to(dtype)
    return label_smoothing * probability + (1 - label_smoothing) * (1 - probability)


def margin_target(signal: Pairs, tau: float, dtype: torch.dtype) -> float | Float[Tensor, " P"]:
    """(P - 1/2) / tau, on which squared losses regress a margin: 1 / (2 tau) for a pair that is certain."""
    return (0.5 - flip_chance(signal, 0.0, dtype)) / tau


def pair_losses(
    per_unit: Float[Tensor, " P"], scores: TokenScores, signal: Pairs, rewards: Float[Tensor, " C"]
) -> Losses:
    """The losses of pairs, each of weight one, with the usual metrics; `rewards` is what the method scores
    with.
    """
    return Losses(
        per_unit=per_unit,
        weight=pair_weights(signal).to(per_unit.dtype),
        metrics=score_metrics(scores, signal, rewards),
    )


def losses_with_nll(
    preference: Float[Tensor, " P"],
    nll_weight: float,
    nll_scale: str,
    scores: TokenScores,
    signal: Pairs,
    *,
    rewards: Float[Tensor, " C"],
) -> Losses:
    """`pair_losses` of preference + nll_weight * NLL(chosen), with the unweighted NLL as the metric `nll`."""
    over_tokens = sum_tokens if nll_scale == "sum" else mean_tokens
    nll = -over_tokens(scores.logp, scores.lengths)[signal.chosen]
    losses = pair_losses(preference + nll_weight * nll, scores, signal, rewards)
    return replace(losses, metrics={**losses.metrics, "nll": nll.detach()})
