"""Bradley-Terry: a reward model out of preferences."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import reward_metrics
from preftune.objectives.checks import between, not_negative
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import flip_chance, pair_margin, pair_sides, pair_weights
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(PairObjective):
    """A scalar head's reward of the chosen completion above that of the rejected one, by a logistic loss.

        L = -p log sigma(r_w - r_l - m) - (1 - p) log sigma(r_l - r_w - m) + c * (r_w + r_l)^2

    with r the head's value after the last token of a completion has been read, p the pair's probability if
    the data give it, else 1. The loss of Ouyang et al., "Training Language Models to Follow Instructions with
    Human Feedback", NeurIPS 2022, arXiv 2203.02155; the margin is that of Touvron et al., "Llama 2", 2023,
    arXiv 2307.09288, and the centering that of Eisenstein et al., "Helping or Herding?", 2023, arXiv
    2312.09244; checked against a public implementation. It is `dpo` with the head's value in the place of the
    implicit reward.

    With several heads the loss is the mean over the heads, each of which sees every pair; metrics are of the mean
    reward, and `rewards/disagreement` is the standard deviation of r_w - r_l over the heads. Ensembles of heads
    that start from different draws: Liu et al., "Sample-Efficient Alignment for LLMs", 2024, arXiv 2411.01493.

    Args:
        margin: m, by which the better completion should win, >= 0.
        centring: c, >= 0. A preference does not determine the rewards' origin; this term pulls it to 0.
        heads: K, how many heads share the body, >= 1.
    """

    name = "bradley-terry"
    learning_rates = rates_of(
        1e-5, "the reward models of exo's authors; 9e-6 in NVIDIA's code (NeMo-Aligner)", low=9e-6
    )
    needs = frozenset({"value_after"})
    trains = "reward model"
    chosen_fall = "possible"
    length_normalized = True

    margin: float = not_negative(0.0)
    centring: float = not_negative(0.01)
    heads: int = between(1, "[1, 1024]")

    @property
    def value_heads(self) -> int:
        return self.heads

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        assert scores.value_after is not None, "the objective declares value_after in its needs"
        by_head = scores.value_after[scores.lengths.cumsum(0) - 1]
        if by_head.ndim == 1:  # one head
            by_head = by_head[:, None]
        lead, flipped = pair_margin(by_head, signal), flip_chance(signal, 0.0, by_head.dtype)
        if isinstance(flipped, Tensor):
            flipped = flipped[:, None]
        preference = (1 - flipped) * logistic(lead - self.margin) + flipped * logistic(-lead - self.margin)
        chosen, rejected = pair_sides(by_head, signal)
        per_unit = (preference + self.centring * (chosen + rejected).square()).mean(1)
        metrics = reward_metrics(signal, by_head.mean(1))
        if by_head.shape[1] > 1:
            metrics["rewards/disagreement"] = lead.detach().std(1, correction=0)
        return Losses(per_unit=per_unit, weight=pair_weights(signal).to(per_unit.dtype), metrics=metrics)
