"""REINFORCE++: PPO without a critic, its advantages whitened over the whole step."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.advantages import moments, reward_to_go, whitened
from preftune.objectives.base import Coupled, State, coupling_of
from preftune.objectives.checks import between, not_negative
from preftune.objectives.clipping import token_ratio
from preftune.objectives.kinds import TokenObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.policy_gradient import clipped_losses, penalized_token_rewards, policy_losses
from preftune.types import Coupling, Float, Int, Losses, Rewards, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus(Coupled, TokenObjective):
    """The return from each token on, whitened over all tokens of the step, in PPO's clipped loss.

        L_t = -min( rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t ),   rho_t = pi(y_t) / mu(y_t)
        A_t = whitened( sum over k >= 0 of gamma^k r_t+k ),   r_t = -beta * (log mu(y_t) - log ref(y_t)) +
        [last token] r

    with mu the behavior policy, the mean over all tokens of the step. Hu, "REINFORCE++", 2025, arXiv
    2501.03262; checked against a public implementation. One completion per prompt is enough.

    Args:
        beta: strength of the pull to the reference, >= 0, by a penalty in each token's reward; at 0 there is
            no reference. The default is OpenRLHF's initial KL coefficient.
        gamma: discount per token, in (0, 1].
        clip: how far a ratio may leave 1, in (0, 1).
    """

    name = "reinforce-plus-plus"
    learning_rates = rates_of(3e-6, "verl's scripts")
    uses_steps = True

    beta: float = not_negative(0.01)
    gamma: float = between(1.0, "(0, 1]")
    clip: float = between(0.2, "(0, 1)")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"behaviour_logp", "coupling"} | ({"ref_logp"} if self.beta > 0 else set()))

    @property
    def couples(self) -> frozenset[str]:
        """Without a penalty the rewards and lengths are enough."""
        return frozenset({"scores"} if self.beta > 0 else set())

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """Mean and variance of the returns of all tokens of the step."""
        assert isinstance(step.signal, Rewards)
        return Coupling(whole=moments(self._returns(step.scores, step.lengths, step.signal))), {}

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        returns = self._returns(scores, scores.lengths, signal).to(scores.logp.dtype)
        advantage = whitened(returns, **coupling_of(scores).whole)
        per_unit, ratios = clipped_losses(token_ratio(scores), advantage, self.clip, self.clip)
        weight = self.weights(scores.lengths, signal)
        return policy_losses(
            per_unit, weight, scores, signal, advantage=advantage, beta=self.beta, extra=ratios
        )

    def _returns(
        self, scores: TokenScores | None, lengths: Int[Tensor, " C"], signal: Rewards
    ) -> Float[Tensor, " N"]:
        return reward_to_go(penalized_token_rewards(scores, lengths, signal, self.beta), lengths, self.gamma)
