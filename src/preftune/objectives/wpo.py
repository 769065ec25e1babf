"""WPO: DPO in which pairs that the policy would hardly write itself count less."""

from dataclasses import dataclass, replace

from preftune.objectives.base import log_ratio, mean_tokens
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_sides
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class WPO(PairObjective):
    """DPO's loss of each pair, times how likely the policy is to write the two completions itself.

        L = -sg( min(1, w(chosen) * w(rejected)) ) * log sigma( beta * (h(chosen) - h(rejected)) )
        w(y) = exp( mean_t [ log pi(y_t) - log sum_v pi(v)^2 ] )

    with h the log-ratio of a completion to the reference, summed over tokens, v all tokens of the vocabulary
    and sg the stop-gradient. Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization", EMNLP
    2024, arXiv 2406.11827, with "sampled alignment": a token is measured against what the policy draws on
    average. Checked against the authors' code, which has the bound of 1. With all weights at 1 it is DPO.

    Args:
        beta: strength of the pull to the reference, > 0; the authors' default.
    """

    name = "wpo"
    learning_rates = rates_of(5e-7, "the authors' for Mistral; 1e-6 for Llama 3", high=1e-6)
    needs = frozenset({"ref_logp", "log_collision"})
    chosen_fall = "possible"
    value_is_surrogate = True

    beta: float = positive(0.01)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        assert scores.log_collision is not None
        alignment = mean_tokens(scores.logp.detach() - scores.log_collision.detach(), scores.lengths)
        chosen, rejected = pair_sides(alignment, signal)
        weight = (chosen + rejected).clamp(max=0.0).exp()
        rewards = self.beta * log_ratio(scores)
        losses = pair_losses(weight * logistic(pair_margin(rewards, signal)), scores, signal, rewards)
        return replace(losses, metrics={**losses.metrics, "pair_weight": weight})
