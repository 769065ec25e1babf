"""EXO: reverse KL from the policy's preference to the data's."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import check_between, check_positive
from preftune.objectives.links import binary_kl
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class EXO:
    """The KL divergence that cDPO minimises, with its arguments swapped: mode-seeking instead of mean-seeking.

        L = KL( Bernoulli(sigma(beta * D)) || Bernoulli(1 - e) ),   D = h(chosen) - h(rejected)

    Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", ICML 2024, arXiv 2402.00856, equation
    16 (EXO-pref, two completions). The authors' code uses the unnormalised log target (0, -10), which is e = 4.5e-5.

    Args:
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, in (0, 0.5); at 0 the divergence is infinite.
    """

    beta: float = 0.1
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("exo", beta=self.beta)
        check_between("exo", "(0, 0.5)", label_smoothing=self.label_smoothing)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp"})

    @property
    def signal(self) -> type[Pairs]:
        return Pairs

    def weights(self, lengths: Int[Tensor, " C"], signal: Pairs) -> Float[Tensor, " U"]:
        """One per pair."""
        return pair_weights(signal)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        margin = pair_margin(rewards, signal)
        target = torch.full_like(margin, math.log((1 - self.label_smoothing) / self.label_smoothing))
        return pair_losses(binary_kl(margin, target), scores, signal, rewards)
