"""TIS-DPO: DPO in which each token counts according to a weight from two contrasting models."""

from dataclasses import dataclass, replace

from preftune.errors import ConfigError
from preftune.objectives.base import log_ratio, mean_tokens, reference, sum_tokens
from preftune.objectives.checks import finite, not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import bounded_exp, logistic
from preftune.objectives.pairwise import pair_losses
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class TISDPO(PairObjective):
    """DPO on log-ratios that are weighted token by token, with the policy's divergence from the reference as
    a penalty.

        L = -log sigma( beta * ( u(chosen) - u(rejected) - alpha * (k(chosen) - k(rejected)) ) )
        u(y) = sum_t w_t * log( pi(y_t) / ref(y_t) ),   k(y) = sum_t w_t * KL(pi || ref)_t
        w_t = exp( +-mu * clamp( log( pi_plus(y_t) / pi_minus(y_t) ), lower, upper ) )

    with the KL over the vocabulary, + on the chosen and - on the rejected completion, and pi_plus, pi_minus
    two frozen
    models: one trained toward preferred completions, one trained away from them. Liu et al., "TIS-DPO: Token-level
    Importance Sampling for Direct Preference Optimization With Estimated Weights", ICLR 2025, arXiv
    2410.04350. The loss, the contrast of a token and its two signs are checked against the authors' code, whose
    weights are linear in the contrast; the exponential is the paper's, its constants are ours. A
    constant factor before w_t is left
    out: the margin is linear in it, so that it would be another beta. With mu = 0 and alpha = 0 it is DPO.

    Args:
        beta: strength of the pull to the reference, > 0; the authors' default.
        alpha: weight of the divergences, >= 0; the authors' default. At 0 only log-ratios are left.
        mu: sharpness of the token weights, >= 0; at 0 all tokens weigh 1.
        lower: least contrast of a token, in nats.
        upper: largest contrast of a token, above `lower`.
    """

    name = "tis-dpo"
    learning_rates = rates_of(5e-7, "the authors' code")
    chosen_fall = "possible"

    beta: float = positive(0.1)
    alpha: float = not_negative(0.5)
    mu: float = not_negative(1.0)
    lower: float = finite(-0.5)
    upper: float = finite(1.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower >= self.upper:
            raise ConfigError("tis-dpo: lower must be below upper", got=f"{self.lower} and {self.upper}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp", "contrast"} | ({"kl_to_ref"} if self.alpha > 0 else set()))

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        assert scores.contrast is not None
        value = scores.logp - reference(scores)
        if self.alpha > 0:
            assert scores.kl_to_ref is not None
            value = value - self.alpha * scores.kl_to_ref
        exponent = self.mu * scores.contrast.detach().clamp(self.lower, self.upper)
        for_chosen, for_rejected = bounded_exp(exponent), bounded_exp(-exponent)
        chosen = sum_tokens(for_chosen * value, scores.lengths)[signal.chosen]
        rejected = sum_tokens(for_rejected * value, scores.lengths)[signal.rejected]
        losses = pair_losses(
            logistic(self.beta * (chosen - rejected)), scores, signal, self.beta * log_ratio(scores)
        )
        token_weights = {
            "token_weights/chosen": mean_tokens(for_chosen, scores.lengths)[signal.chosen],
            "token_weights/rejected": mean_tokens(for_rejected, scores.lengths)[signal.rejected],
        }
        return replace(losses, metrics={**losses.metrics, **token_weights})
