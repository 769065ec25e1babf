"""GDPO and GIPO: geometric averaging of the two answers by a soft label."""

from dataclasses import dataclass
from typing import Literal

from preftune.objectives.base import log_ratio
from preftune.objectives.checks import between, positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import our_rate
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin
from preftune.types import Losses, Pairs, TokenScores

Link = Literal["logistic", "square"]


@dataclass(frozen=True, kw_only=True)
class GDPO(PairObjective):
    """DPO, or IPO, whose margin shrinks with the uncertainty of the preference.

        logistic:  L = -log sigma( beta * (2p - 1) * D )            D = h(chosen) - h(rejected)
        square:    L = ( (2p - 1) * D - 1 / (2 beta) )^2            (GIPO)

    with p the probability that the chosen completion is the better one. Furuta et al., "Geometric-Averaged
    Preference Optimization for Soft Preference Labels", NeurIPS 2024, arXiv 2409.06691; formula not verified
    against the paper. Where the data give p for each pair it is used, else `soft_label` for all of them: then
    the loss is that of `dpo` with beta * (2p - 1). At p = 1/2 a pair has no gradient, below it is turned
    round. Unlike label smoothing the logistic form never pulls a margin back.

    Args:
        beta: strength of the pull to the reference, > 0; IPO's tau in the square form.
        soft_label: p where the data have none, in (0.5, 1]; at 1 it is DPO (or IPO with sums).
        link: "logistic" for GDPO, "square" for GIPO.
    """

    name = "gdpo"
    learning_rates = our_rate(1e-6, "the default of dpo, because no source with a rate for it could be read")
    needs = frozenset({"ref_logp"})
    chosen_fall = "possible"

    beta: float = positive(0.1)
    soft_label: float = between(0.9, "(0.5, 1]")
    link: Link = "logistic"

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        rewards = self.beta * log_ratio(scores)
        known = signal.probability
        probability = self.soft_label if known is None else known.to(rewards.dtype)
        margin = (2 * probability - 1) * pair_margin(rewards, signal)
        # for the square form a margin of log-ratios: 1 / (2 beta) is 1 / 2 in units of rewards
        per_unit = logistic(margin) if self.link == "logistic" else ((margin - 0.5) / self.beta).square()
        return pair_losses(per_unit, scores, signal, rewards)
