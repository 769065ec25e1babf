"""PPO: a clipped ratio and a critic."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.advantages import gae, moments, whitened
from preftune.objectives.base import Coupled, State, coupling_of
from preftune.objectives.checks import between, not_negative, positive
from preftune.objectives.clipping import token_ratio
from preftune.objectives.kinds import TokenObjective
from preftune.objectives.policy_gradient import clipped_losses, penalized_token_rewards, policy_losses
from preftune.types import Coupling, Losses, Rewards, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class PPO(Coupled, TokenObjective):
    """Advantages from a critic, whitened over the step, in a loss that stops where the policy has moved
    enough.

        L_t = max( -rho_t A_t, -clip(rho_t, 1 - clip, 1 + clip) A_t ) + vf_coef * (V_t - R_t)^2 / 2
        rho_t = pi(y_t) / mu(y_t),   r_t = -kl_coef * (log mu(y_t) - log ref(y_t)) + [last token] r
        A'_t = d_t + gamma * lam * A'_t+1,   d_t = r_t + gamma * V_t+1 - V_t,   R_t = A'_t + V_t,   A_t =
        whitened(A'_t)

    with mu the behaviour policy; A_t and R_t are held constant; the mean over all tokens of the step.
    Schulman et al., "Proximal Policy Optimization Algorithms", 2017, arXiv 1707.06347; for language models as
    in Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019, arXiv 1909.08593; checked
    against public implementations, whose defaults these are.

    Args:
        kl_coef: strength of the pull to the reference, >= 0, by a penalty in each token's reward; at 0 there
            is no reference.
        clip: how far a ratio may leave 1, in (0, 1).
        vf_coef: weight of the critic's loss, >= 0.
        gamma: discount per token, in (0, 1].
        lam: how far an advantage looks ahead, in [0, 1]: 0 one token, 1 to the end.
        value_clip: how far a value may leave that at sampling before its loss is flat, > 0, 0.2 being usual.
            With it advantages are those of the critic that was there at sampling; without it, of the critic
            that trains.
        dual_clip: c > 1, the largest loss in units of |A_t| where A_t < 0; 3 in a public implementation.
    """

    name = "ppo"

    kl_coef: float = not_negative(0.05)
    clip: float = between(0.2, "(0, 1)")
    vf_coef: float = not_negative(0.1)
    gamma: float = between(1.0, "(0, 1]")
    lam: float = between(0.95, "[0, 1]")
    value_clip: float | None = positive(None)
    dual_clip: float | None = between(None, "(1, inf)")

    @property
    def needs(self) -> frozenset[str]:
        reference = {"ref_logp"} if self.kl_coef > 0 else set()
        critic = {"value"} if self.value_clip is None else {"value", "behaviour_value"}
        return frozenset({"behaviour_logp", "coupling"} | reference | critic)

    @property
    def value_is_surrogate(self) -> bool:
        return self.value_clip is None

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """Mean and variance of the advantages of all tokens of the step."""
        assert isinstance(step.signal, Rewards) and step.scores is not None
        return Coupling(whole=moments(self._advantages(step.scores, step.signal))), {}

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        raw = self._advantages(scores, signal)
        advantage = whitened(raw, **coupling_of(scores).whole)
        policy, ratios = clipped_losses(token_ratio(scores), advantage, self.clip, self.clip, self.dual_clip)
        critic = self._critic_loss(scores, raw + self._old_value(scores))
        weight = self.weights(scores.lengths, signal)
        return policy_losses(
            policy + self.vf_coef * critic,
            weight,
            scores,
            signal,
            advantage=advantage,
            beta=self.kl_coef,
            extra=ratios | {"value_loss": critic},
        )

    def _old_value(self, scores: TokenScores) -> Float[Tensor, " N"]:
        """The value that advantages are measured from; detached."""
        value = scores.value if self.value_clip is None else scores.behaviour_value
        assert value is not None, "ppo declares the values that it reads"
        return value.detach()

    def _advantages(self, scores: TokenScores, signal: Rewards) -> Float[Tensor, " N"]:
        """Before whitening."""
        rewards = penalized_token_rewards(scores, scores.lengths, signal, self.kl_coef).to(scores.logp.dtype)
        return gae(rewards, self._old_value(scores), scores.lengths, self.gamma, self.lam)

    def _critic_loss(self, scores: TokenScores, returns: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        value = scores.value
        assert value is not None, "ppo declares the value that it reads"
        loss = (value - returns).square() / 2
        if self.value_clip is None:
            return loss
        old = self._old_value(scores)
        near = torch.clamp(value, old - self.value_clip, old + self.value_clip)
        return torch.maximum(loss, (near - returns).square() / 2)
