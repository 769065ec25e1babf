"""beta-DPO: DPO whose beta follows the margins of the step, without the pairs whose margin is unusual."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, State, coupling_of, log_ratio
from preftune.objectives.checks import between, not_negative, positive
from preftune.objectives.coupling import (
    check_state,
    initial_moments,
    lexicographic,
    pair_keys,
    standardized_in_fp64,
    step_scores,
    update_moments,
)
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Coupling, Float, Int, Losses, Pairs, StepView, TokenScores

_MIN_BETA = 1e-3  # as the authors have it


@dataclass(frozen=True, kw_only=True)
class BetaDPO(Coupled, PairObjective):
    """DPO on the pairs of a step whose margin D is usual, with a beta that grows with their mean margin.

        L = -log sigma(beta_step * D) on kept pairs,   D = h(chosen) - h(rejected)
        beta_step = max( 0.001, beta * (1 + alpha * (mean of kept D - M)) )
        kept: drawn without replacement with weights exp( -(D - M)^2 / (2 S^2) )

    with M and S the running mean and standard deviation of D, and no gradient through beta_step. Wu et al.,
    "beta-DPO: Direct Preference Optimization with Dynamic beta", NeurIPS 2024, arXiv 2407.08639. At alpha = 0
    and keep = 1 it is DPO.

    Args:
        beta: strength of the pull to the reference where the kept margins are of usual size, > 0.
        alpha: relative change of beta per nat of margin above the running mean, >= 0.
        keep: share of the pairs of a step that is kept, in (0, 1]; at least one pair is.
    """

    name = "beta-dpo"
    learning_rates = rates_of(5e-7, "the authors' code")
    needs = frozenset({"ref_logp", "coupling"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    alpha: float = not_negative(0.6)
    keep: float = between(0.8, "(0, 1]")

    def initial_state(self) -> dict[str, Tensor]:
        """Running moments of D; their number of steps also seeds the draw."""
        return initial_moments()

    @property
    def value_is_surrogate(self) -> bool:
        return self.alpha > 0 or self.keep < 1

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """The step's beta, and of each pair whether it is kept."""
        check_state(self.name, state, self.initial_state())
        assert isinstance(step.signal, Pairs)
        margin = pair_margin(log_ratio(step_scores(step)), step.signal)
        mean, std, new = update_moments(margin, state)
        order = lexicographic(*pair_keys(step, step.signal), margin)
        log_weight = -standardized_in_fp64(margin, mean, std).square() / 2
        count = max(1, round(self.keep * len(margin)))
        kept = _draw(log_weight, order, count, seed=int(state["steps"]))
        beta = self.beta * (1 + self.alpha * (margin[kept].double().mean() - mean))
        # Units weigh one before it is known which are kept, so those that are stand for the others too.
        factor = kept.to(margin.dtype) * (len(margin) / count)
        return Coupling(
            whole={"beta": beta.clamp(min=_MIN_BETA).to(margin.dtype)}, pair={"factor": factor}
        ), new

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio, coupling = log_ratio(scores), coupling_of(scores)
        beta, factor = coupling.whole["beta"], coupling.pair["factor"]
        per_unit = factor * logistic(beta * pair_margin(ratio, signal))
        losses = pair_losses(per_unit, scores, signal, self.beta * ratio)
        kept = (factor > 0).to(factor.dtype)
        return replace(losses, metrics={**losses.metrics, "beta_dpo/beta": beta[None], "beta_dpo/kept": kept})


def _draw(log_weight: Float[Tensor, " P"], order: Int[Tensor, " P"], count: int, seed: int) -> Tensor:
    """Which `count` pairs are kept, drawn one after another in proportion to their weights (by Gumbel noise
    on the logs).

    The noise goes to pairs in the given order, so that it does not depend on the position of a pair in its step.
    """
    random = torch.Generator().manual_seed(seed)
    exponential = torch.empty(len(order), dtype=torch.float64).exponential_(generator=random)
    noise = torch.empty_like(log_weight)
    noise[order] = -exponential.log().to(noise.device)
    kept = torch.zeros_like(log_weight, dtype=torch.bool)
    kept[(log_weight + noise).topk(count).indices] = True
    return kept
