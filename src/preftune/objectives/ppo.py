"""PPO: a clipped ratio and a critic."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.objectives.advantages import gae, moments, reward_to_go, whitened
from preftune.objectives.base import Coupled, State, coupling_of
from preftune.objectives.checks import between, not_negative, positive
from preftune.objectives.clipping import token_ratio
from preftune.objectives.coupling import check_state, initial_moments, update_moments
from preftune.objectives.kinds import TokenObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.policy_gradient import clipped_losses, penalized_token_rewards, policy_losses
from preftune.types import Coupling, Float, Losses, Rewards, StepView, TokenScores

_NO_SPREAD = 1e-6


@dataclass(frozen=True, kw_only=True)
class PPO(Coupled, TokenObjective):
    """Advantages from a critic, whitened over the step, in a loss that stops where the policy has moved
    enough.

        L_t = max( -rho_t A_t, -clip(rho_t, 1 - clip, 1 + clip) A_t ) + vf_coef * (V_t - R_t)^2 / 2
        rho_t = pi(y_t) / mu(y_t),   r_t = -kl_coef * (log mu(y_t) - log ref(y_t)) + [last token] r
        A'_t = d_t + gamma * lam * A'_t+1,   d_t = r_t + gamma * V_t+1 - V_t,   R_t = A'_t + V_t,   A_t =
        whitened(A'_t)

    with mu the behavior policy; A_t and R_t are held constant; the mean over all tokens of the step. With
    `normalize_returns` the scalar head v_t is on the scale of the returns: V_t = m + s v_t, where m and s are
    running mean and standard deviation of the discounted sums of r_t over tokens, and the critic's loss is
    (v_t - (R_t - m) / s)^2 / 2. A head that starts at 0 then predicts the mean return, and its loss does not
    depend on the scale of the reward.
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
        normalize_returns: learn values on the scale of the returns, starting from their mean. Without it the
            head predicts returns as they are and starts at 0.
        value_clip: how far a value may leave that at sampling before its loss is flat, > 0, 0.2 being usual;
            on the head's scale.
            With it advantages are those of the critic that was there at sampling; without it, of the critic
            that trains.
        dual_clip: c > 1, the largest loss in units of |A_t| where A_t < 0; 3 in a public implementation.
    """

    name = "ppo"
    learning_rates = rates_of(3e-6, "TRL's default; 1e-6 in verl's scripts", low=1e-6)
    uses_steps = True

    kl_coef: float = not_negative(0.05)
    clip: float = between(0.2, "(0, 1)")
    vf_coef: float = not_negative(0.1)
    gamma: float = between(1.0, "(0, 1]")
    lam: float = between(0.95, "[0, 1]")
    normalize_returns: bool = True
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

    @property
    def values_are_returns(self) -> bool:
        return not self.normalize_returns

    def initial_state(self) -> dict[str, Tensor]:
        """Running moments of the returns, if values are on their scale."""
        return initial_moments() if self.normalize_returns else {}

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """Mean and variance of the advantages of all tokens of the step, and the scale of the values."""
        assert isinstance(step.signal, Rewards) and step.scores is not None
        check_state(self.name, state, self.initial_state())
        scale, new = self._scale(step.scores, step.signal, state)
        return Coupling(whole=moments(self._advantages(step.scores, step.signal, scale)) | scale), new

    def _scale(
        self, scores: TokenScores, signal: Rewards, state: State
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean and deviation of the returns up to this step, and the new state."""
        if not self.normalize_returns:
            return {}, {}
        rewards = penalized_token_rewards(scores, scores.lengths, signal, self.kl_coef)
        mean, std, new = update_moments(reward_to_go(rewards, scores.lengths, self.gamma), state)
        deviation = torch.where(std < _NO_SPREAD, 1.0, std)  # returns that are all equal have no scale
        return {"value_mean": mean, "value_std": deviation}, new

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        whole = coupling_of(scores).whole
        raw = self._advantages(scores, signal, whole)
        advantage = whitened(raw, whole["mean"], whole["variance"])
        policy, ratios = clipped_losses(token_ratio(scores), advantage, self.clip, self.clip, self.dual_clip)
        critic = self._critic_loss(scores, (raw / whole.get("value_std", 1.0)).to(raw.dtype))
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
        """The head's value that advantages are measured from; detached."""
        value = scores.value if self.value_clip is None else scores.behaviour_value
        assert value is not None, "ppo declares the values that it reads"
        return value.detach()

    def _advantages(
        self, scores: TokenScores, signal: Rewards, scale: Mapping[str, Tensor]
    ) -> Float[Tensor, " N"]:
        """Before whitening, on the scale of the rewards."""
        rewards = penalized_token_rewards(scores, scores.lengths, signal, self.kl_coef).to(scores.logp.dtype)
        values = scale.get("value_mean", 0.0) + scale.get("value_std", 1.0) * self._old_value(scores)
        return gae(rewards, values.to(rewards.dtype), scores.lengths, self.gamma, self.lam)

    def _critic_loss(self, scores: TokenScores, advantage: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Of the head's values against the returns, both on the head's scale."""
        returns = advantage + self._old_value(scores)
        value = scores.value
        assert value is not None, "ppo declares the value that it reads"
        loss = (value - returns).square() / 2
        if self.value_clip is None:
            return loss
        old = self._old_value(scores)
        near = torch.clamp(value, old - self.value_clip, old + self.value_clip)
        return torch.maximum(loss, (near - returns).square() / 2)
