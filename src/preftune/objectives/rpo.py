"""RPO: DPO plus likelihood of the chosen completion."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import check_choice, check_not_negative, check_positive
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import NLL_SCALES, NLLScale, losses_with_nll, pair_margin, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class RPO:
    """DPO that also holds the chosen completion up.

        L = -log sigma(beta * D) + w * NLL(chosen),   D = h(chosen) - h(rejected)

    Liu et al., "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial
    Regularizer", NeurIPS 2024, arXiv 2405.16436, and, with w = 1 on the mean, Pang et al., "Iterative
    Reasoning Preference Optimization", NeurIPS 2024, arXiv 2404.19733. The first has two public codes on two
    scales: the mean over tokens with w = 0.2 and beta 0.5 (the default here), and the sum with w = eta * beta
    = 0.005 * 0.01 and beta 0.01. The two differ by the length and that beta.

    Args:
        beta: strength of the pull to the reference, > 0.
        nll_weight: w, >= 0, with every factor in it.
        nll_scale: whether the likelihood term is the mean over the completion's tokens or their sum.
    """

    beta: float = 0.5
    nll_weight: float = 0.2
    nll_scale: NLLScale = "mean"

    def __post_init__(self) -> None:
        check_positive("rpo", beta=self.beta)
        check_not_negative("rpo", nll_weight=self.nll_weight)
        check_choice("rpo", NLL_SCALES, nll_scale=self.nll_scale)

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
        preference = logistic(pair_margin(rewards, signal))
        return losses_with_nll(preference, self.nll_weight, self.nll_scale, scores, signal, rewards=rewards)
