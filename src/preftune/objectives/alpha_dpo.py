"""AlphaDPO: SimPO with a margin of each pair's own, from what separates policy and reference."""

from dataclasses import dataclass, replace

from torch import Tensor

from preftune.objectives.base import Coupled, State, coupling_of, mean_log_ratio
from preftune.objectives.checks import finite, positive
from preftune.objectives.coupling import (
    check_state,
    initial_moments,
    standardized_in_fp64,
    step_scores,
    update_moments,
)
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.pairwise import pair_margin
from preftune.objectives.simpo import target_margin_losses
from preftune.types import Coupling, Losses, Pairs, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class AlphaDPO(Coupled, PairObjective):
    """The mean log-probability of the chosen completion above the rejected one's by a margin, larger for
    pairs that the policy already separates better than the reference.

        L = -log sigma( beta * (lpbar(chosen) - lpbar(rejected)) - gamma - beta * alpha * z ),   lpbar = log
        pi(y) / |y| z = (M - mu) / sd,   M = hbar(chosen) - hbar(rejected),   hbar = h / |y|

    with mu and sd the running mean and standard deviation of M, and no gradient through z. Wu et al.,
    "AlphaDPO: Adaptive Reward Margin for Direct Preference Optimization", ICML 2025, arXiv 2410.10148. The
    authors' code takes gamma / beta, this class gamma. The defaults are those for Llama-3-Instruct. At alpha
    = 0 it is SimPO.

    Args:
        beta: scale of the mean log-probability, > 0.
        gamma: target margin of a pair with z = 0, in units of beta times nats per token.
        alpha: nats per token of margin for each standard deviation of M.
    """

    name = "alpha-dpo"
    learning_rates = rates_of(1e-6, "the highest of the authors' rates, which depend on the model", low=6e-7)
    needs = frozenset({"ref_logp", "coupling"})
    chosen_fall = "possible"
    length_normalized = True
    value_is_surrogate = True

    beta: float = positive(2.5)
    gamma: float = finite(1.5)
    alpha: float = finite(0.2)

    def initial_state(self) -> dict[str, Tensor]:
        """Running moments of M."""
        return initial_moments()

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """z of each pair."""
        check_state(self.name, state, self.initial_state())
        assert isinstance(step.signal, Pairs)
        margin = pair_margin(mean_log_ratio(step_scores(step)), step.signal)
        mean, std, new = update_moments(margin, state)
        return Coupling(pair={"z": standardized_in_fp64(margin, mean, std).to(margin.dtype)}), new

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        margin = self.gamma + self.beta * self.alpha * coupling_of(scores).pair["z"]
        losses = target_margin_losses(scores, signal, beta=self.beta, gamma=margin)
        return replace(losses, metrics={**losses.metrics, "alpha_dpo/margin": margin})
