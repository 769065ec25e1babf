"""DIL and GSIL: preference data as imitation, by estimating the ratio of two densities."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import log_ratio, mean_log_ratio, mean_tokens
from preftune.objectives.checks import finite, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import bounded_exp, hinge, logistic
from preftune.objectives.pairwise import pair_losses, pair_sides
from preftune.types import Float, Losses, Pairs, TokenScores

DILLink = Literal["lsif", "ukl", "bce"]
GSILLink = Literal["bernoulli", "brier", "hinge", "kliep", "lsif"]


def density_ratio_loss(
    link: str, positive: Float[Tensor, " P"], negative: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """How badly the log density ratios of a wanted and of an unwanted sample fit; exponents are bounded at
    80.

    bernoulli  -log sigma(a) - log sigma(-b)         kliep  -a + exp(b)
    brier      (sigma(a) - 1)^2 + sigma(b)^2         lsif   -exp(a) + exp(2b) / 2
    hinge      max(0, 1 - a) + max(0, 1 + b)
    """
    if link == "bernoulli":
        return logistic(positive) + logistic(-negative)
    if link == "brier":
        return torch.sigmoid(-positive).square() + torch.sigmoid(negative).square()
    if link == "hinge":
        return hinge(positive) + hinge(-negative)
    if link == "kliep":
        return bounded_exp(negative) - positive
    return bounded_exp(2 * negative) / 2 - bounded_exp(positive)


@dataclass(frozen=True, kw_only=True)
class DIL(PairObjective):
    """The density ratio of policy to reference, estimated so that chosen completions have much of it and
    rejected ones little.

        lsif  L = -exp(hbar(chosen)) + exp(2 hbar(rejected)) / 2        hbar(y) = h(y) / |y|
        ukl   L = -lpbar(chosen) + exp(hbar(rejected))                  lpbar(y) = log pi(y) / |y|
        bce   L = -log sigma(hbar(chosen)) - log sigma(-hbar(rejected))

    Xiao et al., "On a Connection Between Imitation Learning and RLHF", ICLR 2025 (openreview 2QdsjiNXgj), in
    the form of the authors' code: log-ratios per token, and no beta. The paper writes ratios of
    sequences. With sums the exponentials would explode.

    Args:
        link: which estimator of the density ratio; the authors use lsif.
    """

    name = "dil"
    learning_rates = rates_of(
        6e-7, "between the authors' rates, which depend on the model", low=3e-7, high=1e-6
    )
    needs = frozenset({"ref_logp"})
    length_normalized = True

    link: DILLink = "lsif"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = mean_log_ratio(scores)
        chosen, rejected = pair_sides(ratio, signal)
        if (
            self.link == "ukl"
        ):  # the reference's share of the chosen term is a constant, which the authors leave out
            chosen = mean_tokens(scores.logp, scores.lengths)[signal.chosen]
        link = {"ukl": "kliep", "bce": "bernoulli"}.get(self.link, self.link)
        return pair_losses(density_ratio_loss(link, chosen, rejected), scores, signal, ratio)


@dataclass(frozen=True, kw_only=True)
class GSIL(PairObjective):
    """Demonstrations against the policy's own samples: the implicit reward as a classifier between the two.

        bernoulli  L = -log sigma(f(chosen)) - log sigma(-f(rejected)),   f(y) = beta * h(y) + offset
        brier, hinge, kliep and lsif: see `density_ratio_loss`

    Xiao et al., "How to Leverage Demonstration Data in Alignment for Large Language Model? A Self-Imitation
    Learning Perspective", EMNLP 2024 (arXiv 2410.10093). Our beta is the paper's alpha, our
    offset its beta. The chosen completion is a demonstration, the rejected one a sample from the reference,
    which is the policy of the last round.

    Args:
        beta: scale of the log-ratio, > 0.
        offset: added to the implicit reward; bernoulli without it is BCO on pairs.
        link: which estimator of the density ratio.
    """

    name = "gsil"
    learning_rates = rates_of(5e-7, "the authors")
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.01)
    offset: float = finite(2.0)
    link: GSILLink = "bernoulli"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        chosen, rejected = pair_sides(rewards + self.offset, signal)
        return pair_losses(density_ratio_loss(self.link, chosen, rejected), scores, signal, rewards)
