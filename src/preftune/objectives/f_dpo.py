"""f-DPO: DPO under another divergence from the reference."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.errors import ConfigError
from preftune.objectives.base import log_ratio
from preftune.objectives.checks import check_between, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import bounded_expm1, logistic
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Float, Losses, Pairs, TokenScores

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class FDPO(PairObjective):
    """DPO when the policy is held to the reference by an f-divergence other than the reverse KL.

        L = -log sigma( beta * g(h(chosen)) - beta * g(h(rejected)) ),   g(h) = f'(e^h) up to constants:
        reverse_kl  h  (this is DPO)      forward_kl  -exp(-h)
        js          log sigma(h)          alpha       -exp(-alpha * h) / alpha

    Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints", ICLR 2024, arXiv 2309.16240. alpha -> 0 is the reverse KL and alpha = 1 the forward one. The
    log-ratio is a sum over tokens, so -h may be hundreds; exponents are bounded at 80, and a completion
    beyond that gets no gradient. In the alpha divergence the score is (1 - exp(-alpha * h)) / alpha, equal up
    to the constant that the difference cancels.

    Args:
        beta: strength of the pull to the reference, > 0.
        divergence: which of the four.
        alpha: of the alpha divergence, in (0, 1), and only of it; the paper tries 0.3, 0.5 and 0.7.
    """

    name = "f-dpo"
    learning_rates = rates_of(5e-7, "the authors' code; its scripts for IMDb have up to 1.5e-6", high=1.5e-6)
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    divergence: Divergence = "js"
    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence == "alpha":
            check_between("f-dpo", "(0, 1)", alpha=math.nan if self.alpha is None else self.alpha)
        elif self.alpha is not None:
            raise ConfigError(
                f"f-dpo: alpha has no effect with divergence {self.divergence}",
                got=self.alpha,
                expected="none",
                do="Leave it out, or set divergence to alpha",
            )

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * self._score(log_ratio(scores))
        return pair_losses(logistic(pair_margin(rewards, signal)), scores, signal, rewards)

    def _score(self, ratio: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        if self.divergence == "reverse_kl":
            return ratio
        if self.divergence == "js":
            return logsigmoid(ratio)
        alpha = 1.0 if self.alpha is None else self.alpha  # the forward KL is the alpha divergence at its end
        return -bounded_expm1(-alpha * ratio) / alpha
