"""TOPR: off-policy REINFORCE whose importance ratio is tapered, differently for good and for bad samples."""

from dataclasses import dataclass

import torch

from preftune.errors import ConfigError
from preftune.objectives.base import sum_tokens
from preftune.objectives.checks import not_negative
from preftune.objectives.clipping import sequence_ratio
from preftune.objectives.kinds import CompletionObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.policy_gradient import policy_losses
from preftune.types import Losses, Rewards, TokenScores


@dataclass(frozen=True, kw_only=True)
class TOPR(CompletionObjective):
    """REINFORCE on samples of any policy: good samples as in likelihood training, bad samples by a ratio that is at
    most one.

        L = -a r log pi(y),   rho = pi(y) / mu(y)
        a = clip(rho, positive_low, positive_high) where r >= 0, clip(rho, negative_low, negative_high) where
        r < 0

    with mu the behavior policy and a held constant, the mean over completions. Le Roux et al., "Tapered
    Off-Policy
    REINFORCE: Stable and Efficient Reinforcement Learning for LLMs", 2025, arXiv 2503.14286, equations 7 and
    8, by an extract. No baseline and no KL term: center the rewards yourself; +1 and -1 are expected. With all
    bounds at 1 it is `reinforce` without a baseline; with [0, very large] on both sides it is plain
    importance sampling.

    Args:
        positive_low: least ratio of a completion with r >= 0, at least 0.
        positive_high: and its largest, at least positive_low.
        negative_low: least ratio of a completion with r < 0, at least 0.
        negative_high: and its largest, at least negative_low.
    """

    name = "topr"
    learning_rates = rates_of(
        1e-6, "ROLL's example (example_topr.yaml); 1e-5 in that of Trinity-RFT", high=1e-5
    )
    needs = frozenset({"behaviour_logp"})
    value_is_surrogate = True

    positive_low: float = not_negative(1.0)
    positive_high: float = not_negative(1.0)
    negative_low: float = not_negative(0.0)
    negative_high: float = not_negative(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in ("positive", "negative"):
            low, high = getattr(self, f"{side}_low"), getattr(self, f"{side}_high")
            if low > high:
                raise ConfigError(
                    f"topr: {side}_low is above {side}_high", got=low, expected=f"at most {high}"
                )

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        reward, ratio = signal.reward.to(scores.logp.dtype), sequence_ratio(scores).detach()
        positive, negative = (
            ratio.clamp(self.positive_low, self.positive_high),
            ratio.clamp(self.negative_low, self.negative_high),
        )
        taper = torch.where(reward >= 0, positive, negative)
        per_unit = -taper * reward * sum_tokens(scores.logp, scores.lengths)
        return policy_losses(
            per_unit,
            self.weights(scores.lengths, signal),
            scores,
            signal,
            advantage=reward,
            extra={"ratio/mean": ratio, "topr/taper": taper},
        )
