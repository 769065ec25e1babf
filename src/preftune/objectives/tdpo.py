"""TDPO: DPO whose margin also compares how far the policy has moved along each completion."""

from dataclasses import dataclass, replace
from typing import Literal

from preftune.errors import ConfigError
from preftune.objectives.base import log_ratio, sum_tokens
from preftune.objectives.checks import check_positive, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_sides
from preftune.types import Losses, Pairs, TokenScores

Variant = Literal["tdpo1", "tdpo2"]
_ALPHA = 0.5  # the authors'


@dataclass(frozen=True, kw_only=True)
class TDPO(PairObjective):
    """DPO with the forward KL divergence along a completion as part of its implicit reward.

        TDPO1: L = -log sigma( beta * ( D - (K(rejected) - K(chosen)) ) )
        TDPO2: L = -log sigma( beta * ( D - alpha * (K(rejected) - sg(K(chosen))) ) )

    with D = h(chosen) - h(rejected), h the log-ratio to the reference, K(y) = sum_t KL(ref || pi) over the
    vocabulary at each position of y, and sg the stop-gradient: TDPO2 does not reward moving away from the
    reference along the chosen completion. Zeng et al., "Token-level Direct Preference Optimization", ICML
    2024, arXiv 2404.11999; checked against the authors' code. Where K is 0 on both sides, or alpha -> 0, it
    is DPO.

    Args:
        beta: strength of the pull to the reference, > 0; the authors' default.
        variant: "tdpo1" or "tdpo2".
        alpha: weight of the divergences in TDPO2, > 0; by default 0.5, the authors'. TDPO1 has none.
    """

    name = "tdpo"
    learning_rates = rates_of(5e-6, "the authors' code; they recommend `variant tdpo1` for lower rates")
    needs = frozenset({"ref_logp", "kl_from_ref"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    variant: Variant = "tdpo2"
    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            check_positive("tdpo", alpha=self.alpha)
            if self.variant == "tdpo1":
                raise ConfigError(
                    "tdpo: alpha has no effect with variant tdpo1", got=self.alpha, do="Leave it out"
                )

    @property
    def value_is_surrogate(self) -> bool:
        return self.variant == "tdpo2"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        assert scores.kl_from_ref is not None
        ratio, divergence = log_ratio(scores), sum_tokens(scores.kl_from_ref, scores.lengths)
        if self.variant == "tdpo1":
            alpha, of_chosen = 1.0, divergence
        else:
            alpha, of_chosen = _ALPHA if self.alpha is None else self.alpha, divergence.detach()
        chosen = (ratio + alpha * of_chosen)[signal.chosen]
        rejected = (ratio + alpha * divergence)[signal.rejected]
        rewards = self.beta * (ratio + alpha * divergence)
        losses = pair_losses(logistic(self.beta * (chosen - rejected)), scores, signal, rewards)
        sides = dict(zip(("kl/chosen", "kl/rejected"), pair_sides(divergence.detach(), signal), strict=True))
        return replace(losses, metrics={**losses.metrics, **sides})
