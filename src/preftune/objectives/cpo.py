"""CPO: DPO without a reference, plus likelihood."""

from dataclasses import dataclass

from preftune.objectives.base import sum_tokens
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import NLLScale, losses_with_nll, pair_margin
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class CPO(PairObjective):
    """DPO with a uniform reference, and likelihood of the chosen completion in the reference's place.

        L = -log sigma( beta * (log pi(chosen) - log pi(rejected)) ) + w * NLL(chosen)

    Xu et al., "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
    Translation", ICML 2024, arXiv 2401.08417. The paper's likelihood term is the sum over tokens, the
    authors' code takes the mean over all chosen tokens of a micro-batch. Here it is per completion, so that a
    step does not depend on how it is cut.

    Args:
        beta: scale of the log-probabilities, > 0.
        nll_weight: w, >= 0.
        nll_scale: whether the likelihood term is the mean over the completion's tokens (near the code) or
            their sum (the paper).
    """

    name = "cpo"
    learning_rates = rates_of(
        1e-5,
        "a tenth of the authors' 1e-4 (TRL's index of papers), which is of adapters; TRL's default is 1e-6",
        low=1e-6,
    )

    beta: float = positive(0.1)
    nll_weight: float = not_negative(1.0)
    nll_scale: NLLScale = "mean"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * sum_tokens(scores.logp, scores.lengths)
        preference = logistic(pair_margin(rewards, signal))
        return losses_with_nll(preference, self.nll_weight, self.nll_scale, scores, signal, rewards=rewards)
