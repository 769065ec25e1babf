"""DPO against length: length-normalized, length-desensitised and length-regularized."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from preftune.objectives.base import log_ratio, mean_log_ratio, reference
from preftune.objectives.checks import between, not_negative, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_lengths, pair_losses, pair_margin
from preftune.types import Float, Int, Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class LNDPO(PairObjective):
    """DPO on log-ratios per token.

        L = -log sigma( beta * (hbar(chosen) - hbar(rejected)) ),   hbar(y) = h(y) / |y|

    Lambert et al., "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", 2024; checked against a
    public implementation; the default beta is that of the recipe. Log-ratios per token are small, hence a beta far
    above DPO's.

    Args:
        beta: strength of the pull to the reference, > 0.
    """

    name = "ln-dpo"
    learning_rates = rates_of(5e-7, "Tulu 3's 8B recipe (open-instruct); 2e-7 in its 70B recipe", low=2e-7)
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"
    length_normalized = True

    beta: float = positive(5.0)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * mean_log_ratio(scores)
        return pair_losses(logistic(pair_margin(rewards, signal)), scores, signal, rewards)


@dataclass(frozen=True, kw_only=True)
class LDDPO(PairObjective):
    """DPO in which the tokens by which one completion of a pair outlasts the other count less.

        L = -log sigma( beta * (d(chosen) - d(rejected)) ),   d(y) = h(y_1 .. y_m) + alpha * h(y_m+1 .. y_n)
        m = min(|chosen|, |rejected|)

    Liu et al., "Length Desensitization in Direct Preference Optimization", 2024, arXiv 2409.06411; checked
    against a public implementation. alpha = 1 is DPO. The logged `rewards/*` are DPO's: beta * h, undamped, a
    number of the completion alone.

    Args:
        beta: strength of the pull to the reference, > 0.
        alpha: weight of the tokens past the shorter completion's length, in [0, 1].
    """

    name = "ld-dpo"
    learning_rates = rates_of(1e-6, "TRL's default for its pair losses (DPOConfig), which include this one")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    alpha: float = between(0.5, "[0, 1]")

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        token_ratio = scores.logp - reference(scores)
        shared = torch.minimum(*pair_lengths(scores.lengths, signal))
        chosen = _damped_sum(token_ratio, scores.lengths, signal.chosen, shared, self.alpha)
        rejected = _damped_sum(token_ratio, scores.lengths, signal.rejected, shared, self.alpha)
        return pair_losses(
            logistic(self.beta * (chosen - rejected)), scores, signal, self.beta * log_ratio(scores)
        )


def _damped_sum(
    values: Float[Tensor, " N"],
    lengths: Int[Tensor, " C"],
    picked: Int[Tensor, " P"],
    shared: Int[Tensor, " P"],
    alpha: float,
) -> Float[Tensor, " P"]:
    """Sum over the tokens of each picked completion, those after its first `shared` tokens with weight alpha.

    A completion may be picked by several pairs, each with a separate shared length.
    """
    starts = (lengths.cumsum(0) - lengths)[picked]
    exact = values if values.device.type == "mps" else values.double()
    before = pad(exact.cumsum(0), (1, 0))  # the sum before each token
    first, whole = (before[starts + count] - before[starts] for count in (shared, lengths[picked]))
    return (first + alpha * (whole - first)).to(values.dtype)


@dataclass(frozen=True, kw_only=True)
class RDPO(PairObjective):
    """DPO with a length term in addition to the margin: the longer completion's length explains part of its being
    preferred.

        L = -log sigma( beta * D + alpha * (|chosen| - |rejected|) ),   D = h(chosen) - h(rejected)

    Park et al., "Disentangling Length from Quality in Direct Preference Optimization", ACL Findings 2024,
    arXiv
    2403.19159, equation 9; checked against a public implementation. A longer chosen completion gets less
    gradient. The sign follows from the objective "reward - alpha * length"; one public repository has it the
    other way round. `rewards/*` leave the term out.

    Args:
        beta: strength of the pull to the reference, > 0.
        alpha: nats per token of difference, >= 0; larger values push harder; at 0 it is DPO.
    """

    name = "r-dpo"
    learning_rates = rates_of(5e-7, "the default of oat (oat/args.py), which has this loss")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    alpha: float = not_negative(0.01)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        chosen_length, rejected_length = pair_lengths(scores.lengths, signal)
        margin = pair_margin(rewards, signal) + self.alpha * (chosen_length - rejected_length)
        return pair_losses(logistic(margin), scores, signal, rewards)
