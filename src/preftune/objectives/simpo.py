"""SimPO, CPO-SimPO and AlphaPO: no reference, log-probabilities per token, a target margin."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import ChosenFall, mean_tokens
from preftune.objectives.checks import finite, not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import bounded_expm1, logistic
from preftune.objectives.pairwise import NLLScale, losses_with_nll, pair_losses, pair_margin
from preftune.types import Float, Losses, Pairs, TokenScores


def shaped_reward(mean_logp: Float[Tensor, " C"], alpha: float) -> Float[Tensor, " C"]:
    """(1 - exp(-alpha * x)) / alpha of a mean log-probability x, which is x itself at alpha = 0.

    The exponent is bounded at 80: a completion beyond, of mean log-probability below -80 / alpha, gets no
    gradient.
    """
    return -bounded_expm1(-alpha * mean_logp) / alpha if alpha else mean_logp


def target_margin_losses(
    scores: TokenScores, signal: Pairs, *, beta: float, gamma: float | Float[Tensor, " P"], alpha: float = 0.0
) -> Losses:
    """-log sigma( r(chosen) - r(rejected) - gamma ), r = beta * shaped_reward; gamma is one number or one per
    pair.
    """
    rewards = beta * shaped_reward(mean_tokens(scores.logp, scores.lengths), alpha)
    return pair_losses(logistic(pair_margin(rewards, signal) - gamma), scores, signal, rewards)


@dataclass(frozen=True, kw_only=True)
class SimPO(PairObjective):
    """The mean log-probability of the chosen completion above the rejected one's by a margin; no reference.

        L = -log sigma( beta * (lpbar(chosen) - lpbar(rejected)) - gamma ),   lpbar = log pi(y) / |y|

    Meng, Xia and Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward", NeurIPS 2024,
    arXiv
    2405.14734. The authors' code takes gamma / beta, the paper and this class gamma. The defaults are those
    for Llama-3-Base.

    Args:
        beta: scale of the mean log-probability, > 0.
        gamma: target margin, in units of beta times nats per token.
    """

    name = "simpo"
    learning_rates = rates_of(
        6e-7,
        "the authors' for Llama 3 base, whose beta and gamma are the defaults here; 3e-7 to 1e-6 for "
        "their other models",
        low=3e-7,
        high=1e-6,
    )
    chosen_fall = "possible"
    length_normalized = True

    beta: float = positive(2.0)
    gamma: float = finite(1.0)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        return target_margin_losses(scores, signal, beta=self.beta, gamma=self.gamma)


@dataclass(frozen=True, kw_only=True)
class CPOSimPO(PairObjective):
    """SimPO that also holds the chosen completion up, as CPO does.

        L = -log sigma( beta * (lpbar(chosen) - lpbar(rejected)) - gamma ) + w * NLL(chosen),   lpbar = log
        pi(y) / |y|

    The authors of CPO (Xu et al., ICML 2024, arXiv 2401.08417) published it as code, without a paper: `simpo`
    plus the likelihood term of `cpo`. Their description has the likelihood as a sum over tokens, their code
    takes the mean over all chosen tokens of a micro-batch. Here it is per completion, so that a step does not
    depend on how it is cut. The defaults are those of their code for Llama-3-Instruct.

    Args:
        beta: scale of the mean log-probability, > 0.
        gamma: target margin, in units of beta times nats per token.
        nll_weight: w, >= 0; at 0 it is SimPO.
        nll_scale: whether the likelihood term is the mean over the completion's tokens (near the code) or
            their sum (the description).
    """

    name = "cpo-simpo"
    learning_rates = rates_of(1e-6, "the authors")

    beta: float = positive(10.0)
    gamma: float = finite(5.4)
    nll_weight: float = not_negative(0.05)
    nll_scale: NLLScale = "mean"

    @property
    def length_normalized(self) -> bool:
        return self.nll_scale == "mean"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        preference = SimPO(beta=self.beta, gamma=self.gamma)(scores, signal).per_unit
        rewards = self.beta * mean_tokens(scores.logp, scores.lengths)
        return losses_with_nll(preference, self.nll_weight, self.nll_scale, scores, signal, rewards=rewards)


@dataclass(frozen=True, kw_only=True)
class AlphaPO(PairObjective):
    """SimPO with a reward that bends: alpha > 0 weighs unlikely completions more, alpha < 0 likely completions.

        L = -log sigma( r(chosen) - r(rejected) - gamma ),   r(y) = beta * (1 - exp(-alpha * lpbar(y))) /
        alpha

    Gupta et al., "AlphaPO: Reward Shape Matters for LLM Alignment", 2025, arXiv 2501.03884; checked against a
    public implementation. alpha -> 0 is SimPO.

    Args:
        beta: scale of the reward, > 0.
        gamma: target margin.
        alpha: shape of the reward; at 0 it is SimPO.
    """

    name = "alphapo"
    learning_rates = rates_of(7e-7, "the authors' for Mistral 7B Instruct (TRL's index of papers)")
    length_normalized = True

    beta: float = positive(2.5)
    gamma: float = finite(0.1)
    alpha: float = finite(0.25)

    @property
    def chosen_fall(self) -> ChosenFall:
        return "possible" if self.alpha >= 0 else "prevented"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        return target_margin_losses(scores, signal, beta=self.beta, gamma=self.gamma, alpha=self.alpha)
