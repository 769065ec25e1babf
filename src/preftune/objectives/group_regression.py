"""CoPG, AGRO and GVPO: the variance, within a group, of what the implicit rewards leave of the rewards."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.objectives.base import behaviour_ratio, log_ratio
from preftune.objectives.checks import positive
from preftune.objectives.groupwise import comparable_groups, group_index, group_metrics, group_sum
from preftune.objectives.kinds import GroupOfTwoObjective
from preftune.objectives.learning_rates import our_rate, rates_of
from preftune.types import Float, Losses, Rewards, TokenScores


def centred_squares(
    implicit: Float[Tensor, " C"], signal: Rewards
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """S = sum_i (a_i - mean a)^2 of each group with a = reward - implicit reward, and the group's size G.

    The methods of this file are S times a number. With g the gradient of -sum_i sg(A_i) log pi(y_i), A being
    the leave-one-out advantages of a (RLOO with the KL divergence in the reward), the gradient of S is 2 beta
    (G - 1) / G * g.
    """
    index, _ = group_index(signal)
    residual = signal.reward.to(implicit.dtype) - implicit
    size = group_sum(torch.ones_like(residual), signal)
    mean = group_sum(residual, signal) / size
    return group_sum((residual - mean[index]).square(), signal), size


@dataclass(frozen=True, kw_only=True)
class SpreadObjective(GroupOfTwoObjective):
    """A loss of a group's size and of its squares S. A group of a single completion has no spread and no weight.

    Args:
        beta: strength of the pull to the anchor, in units of reward, > 0.
    """

    learning_rates = our_rate(1e-6, "the default of rloo, because no source with a rate for it could be read")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)

    def ratio(self, scores: TokenScores) -> Float[Tensor, " C"]:
        """Log-ratio of each completion to the anchor."""
        return log_ratio(scores)

    @abstractmethod
    def per_group(self, squares: Float[Tensor, " G"], size: Float[Tensor, " G"]) -> Float[Tensor, " G"]: ...

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        rewards = self.beta * self.ratio(scores)
        per_unit = self.per_group(*centred_squares(rewards, signal))
        weight = comparable_groups(signal).to(per_unit.dtype)
        return Losses(per_unit=per_unit, weight=weight, metrics=group_metrics(scores, signal, rewards))


@dataclass(frozen=True, kw_only=True)
class CoPG(SpreadObjective):
    """Differences of regularized rewards made to vanish, over all pairs of a prompt's completions.

        L = (1 / (G - 1)) sum_{i > j} (a_i - a_j)^2 = (G / (G - 1)) sum_i (a_i - mean a)^2,   a = r - beta * h

    Flet-Berliac et al., "Contrastive Policy Gradient: Aligning LLMs on Sequence-level Scores in a
    Supervised-friendly Fashion", EMNLP 2024, arXiv 2406.19185, in the form for groups of a later report's
    summaries. Any policy may have sampled the completions. The gradient is 2 beta times RLOO's of the same
    group.

    Args:
        beta: strength of the pull to the reference, in units of reward, > 0.
    """

    name = "copg"

    def per_group(self, squares: Float[Tensor, " G"], size: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
        return squares * size / (size - 1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class AGRO(SpreadObjective):
    """Half the variance of the regularized reward over a prompt's completions, which is zero at the optimum.

        L = (1/2) (1 / (G - 1)) sum_i (a_i - mean a)^2,   a = r - beta * h

    Tang et al., "RL-finetuning LLMs from on- and off-policy data with a single algorithm", 2025, arXiv
    2503.19612: formula not verified against the paper, whose abstract was read. This is its
    off-policy part; the on-policy one adds the gradient of the sampling distribution, which is left out. CoPG
    divided by 2 G: the gradient is beta / G times RLOO's of the group.

    Args:
        beta: strength of the pull to the reference, in units of reward, > 0.
    """

    name = "agro"

    def per_group(self, squares: Float[Tensor, " G"], size: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
        return squares / (2 * (size - 1).clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class GVPO(SpreadObjective):
    """Centered implicit rewards regressed on centered rewards, with the policy that sampled the group as
    anchor.

        L = (1 / G) sum_i [ (beta * d_i - mean beta * d) - (r_i - mean r) ]^2,   d = log pi - log behavior

    Zhang et al., "GVPO: Group Variance Policy Optimization for Large Language Model Post-Training", NeurIPS
    2025, arXiv
    2504.19599. The authors' code has 1 / (2 (G - 1)) in place of 1 / G, which is AGRO with another anchor. At
    the sampling policy the gradient is 2 beta (G - 1) / G^2 times RLOO's without a KL divergence.

    Args:
        beta: strength of the pull to the sampling policy, in units of reward, > 0; 0.1 in the authors' code.
    """

    name = "gvpo"
    learning_rates = rates_of(1e-6, "the authors' code")
    needs = frozenset({"behaviour_logp"})

    def ratio(self, scores: TokenScores) -> Float[Tensor, " C"]:
        return behaviour_ratio(scores)

    def per_group(self, squares: Float[Tensor, " G"], size: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
        return squares / size
