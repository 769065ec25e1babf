"""Hinge losses: RSO's on log-ratios, SLiC's on log-probabilities."""

from dataclasses import dataclass

from preftune.objectives.base import log_ratio, sum_tokens
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import hinge
from preftune.objectives.pairwise import NLLScale, losses_with_nll, pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class Hinge(PairObjective):
    """DPO's margin under a hinge: pairs beyond it have no gradient.

        L = max(0, 1 - beta * D),   D = h(chosen) - h(rejected)

    The "hinge-norm" loss of Liu et al., "Statistical Rejection Sampling Improves Preference Optimization"
    (RSO), ICLR 2024, arXiv 2309.06657; checked against public implementations. RSO also samples its pairs,
    which is not part of the loss.

    Args:
        beta: strength of the pull to the reference, > 0; the paper's gamma.
    """

    name = "hinge"
    learning_rates = rates_of(
        1e-6,
        "TRL's default for its pair losses (DPOConfig), which include this one; that of oat is 5e-7",
        low=5e-7,
    )
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.05)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        return pair_losses(hinge(pair_margin(rewards, signal)), scores, signal, rewards)


@dataclass(frozen=True, kw_only=True)
class SLiC(PairObjective):
    """A hinge on the log-probabilities themselves, and likelihood of the chosen completion to stay near the
    data.

        L = max(0, delta - log pi(chosen) + log pi(rejected)) + lambda * NLL(chosen)

    Zhao et al., "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", 2023, arXiv 2305.10425;
    checked against a public implementation. The paper takes the likelihood term of a reference answer, which
    may be another one; pairs hold none, so it is that of the chosen completion.

    Args:
        delta: margin in nats, > 0.
        nll_weight: lambda, >= 0.
        nll_scale: whether the likelihood term is the sum (the paper) or the mean over tokens.
    """

    name = "slic"
    learning_rates = rates_of(
        5e-6,
        "the default of HALOs (config/config.yaml), which has this loss; the paper's 1e-4 (TRL's index of "
        "papers) is of other models and optimizers",
    )

    delta: float = positive(1.0)
    nll_weight: float = not_negative(0.1)
    nll_scale: NLLScale = "sum"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        logp = sum_tokens(scores.logp, scores.lengths)
        ranking = (self.delta - pair_margin(logp, signal)).clamp(min=0.0)
        return losses_with_nll(ranking, self.nll_weight, self.nll_scale, scores, signal, rewards=logp)
