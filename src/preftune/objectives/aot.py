"""AOT: the distribution of chosen completions above that of rejected completions, quantile by quantile."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, State, coupling_of, log_ratio, reference, sum_tokens
from preftune.objectives.checks import between, positive
from preftune.objectives.coupling import check_state, lexicographic, pair_keys, step_scores
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_sides
from preftune.types import Coupling, Float, Int, Losses, Pairs, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class AOT(Coupled, PairObjective):
    """The sorted values of one side of a step above the sorted values of the other, rank by rank.

        L = mean_i logistic( beta * (a_(i) - b_(i)) ),   logistic(m) = -(1 - e) log sigma(m) - e log sigma(-m)
            paired    a = lp(chosen) - lp(rejected),  b = lr(chosen) - lr(rejected)
            unpaired  a = h(chosen),                  b = h(rejected)

    with (i) the i-th smallest of the whole step. Melnyk et al., "Distributional Preference Alignment of LLMs
    via Optimal Transport", NeurIPS 2024, arXiv 2406.05882; checked against a public implementation, which
    sorts within a micro-batch. With one pair in the step both forms are DPO.

    Args:
        beta: strength of the pull to the reference, > 0.
        pairing: "paired" compares the policy's margins with the reference's, "unpaired" log-ratios of the
            chosen with those of the rejected completions.
        label_smoothing: e, the probability that a preference was labeled the wrong way round, in [0, 0.5).
    """

    name = "aot"
    learning_rates = rates_of(1e-6, "TRL's default for its pair losses (DPOConfig), which include this one")
    needs = frozenset({"ref_logp", "coupling"})
    chosen_fall = "possible"

    beta: float = positive(0.01)
    pairing: Literal["paired", "unpaired"] = "paired"
    label_smoothing: float = between(0.0, "[0, 0.5)")

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """For each value of a pair, the value of its rank on the other side."""
        check_state(self.name, state, self.initial_state())
        assert isinstance(step.signal, Pairs)
        scores, keys = step_scores(step), pair_keys(step, step.signal)
        if self.pairing == "paired":
            margin, reference_margin = _margins(scores, step.signal)
            return Coupling(pair={"reference_margin": _same_rank(margin, reference_margin, keys)}), {}
        chosen, rejected = pair_sides(log_ratio(scores), step.signal)
        found = {"rejected": _same_rank(chosen, rejected, keys), "chosen": _same_rank(rejected, chosen, keys)}
        return Coupling(pair=found), {}

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        partner, ratio = coupling_of(scores).pair, log_ratio(scores)
        if self.pairing == "paired":
            margin, _ = _margins(scores, signal)
            per_unit = self._logistic(margin - partner["reference_margin"])
        else:
            chosen, rejected = pair_sides(ratio, signal)
            # The two values of one rank may lie in different micro-batches, so each meets the other as a
            # constant. Every term of the joint loss then appears here twice, once for the gradient of either
            # value: half is taken off the value, nothing off the gradient.
            twice = self._logistic(chosen - partner["rejected"]) + self._logistic(
                partner["chosen"] - rejected
            )
            per_unit = twice - twice.detach() / 2
        return pair_losses(per_unit, scores, signal, self.beta * ratio)

    def _logistic(self, difference: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        return logistic(self.beta * difference, self.label_smoothing)


def _margins(scores: TokenScores, signal: Pairs) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Log-probability of the chosen minus that of the rejected completion, under the policy and under the
    reference.
    """
    policy, anchor = (sum_tokens(logp, scores.lengths) for logp in (scores.logp, reference(scores)))
    return pair_margin(policy, signal), pair_margin(anchor, signal)


def _same_rank(
    values: Float[Tensor, " P"], others: Float[Tensor, " P"], keys: tuple[Int[Tensor, " P"], ...]
) -> Float[Tensor, " P"]:
    """For each value, the one of the others that has its rank. Equal values are ranked by the keys of their
    pairs.
    """
    found = torch.empty_like(others)
    found[lexicographic(values, *keys)] = others.sort().values
    return found
