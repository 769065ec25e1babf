"""RPO: DPO plus likelihood of the chosen completion."""

from dataclasses import dataclass

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import NLLScale, losses_with_nll, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class RPO(PairObjective):
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

    name = "rpo"
    learning_rates = rates_of(5e-7, "the paper (appendix E.1, as in TRL's index of papers)")
    needs = frozenset({"ref_logp"})

    beta: float = positive(0.5)
    nll_weight: float = not_negative(0.2)
    nll_scale: NLLScale = "mean"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        preference = logistic(pair_margin(rewards, signal))
        return losses_with_nll(preference, self.nll_weight, self.nll_scale, scores, signal, rewards=rewards)
