"""BNF: bidirectional negative feedback, from single completions or from pairs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.objectives.base import Objective, label_metrics, mean_tokens, per_token, reference, sum_tokens
from preftune.objectives.learning_rates import our_rate
from preftune.objectives.links import MAX_LOGP, log_odds
from preftune.types import Entries, Float, Int, Labels, Losses, Pairs, TokenScores


def odds_weight(logp: Float[Tensor, " N"], ref_logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """w = min(1, odds(p) / odds(q)), odds(p) = p / (1 - p); detached, in [0, 1].

    A ratio of odds and not of probabilities: p = .9, q = .99 gives 9 / 99.
    """
    return (log_odds(logp.detach()) - log_odds(ref_logp.detach())).clamp(max=0.0).exp()


def potential(logp: Float[Tensor, " N"], ref_logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The function of logp whose derivative is the odds weight; 0 at the reference.

        F(p) = log(p / q)                             if p >= q
        F(p) = (1 - q) / q * log((1 - q) / (1 - p))   else

    It lies between (1 - q) / q * log(1 - q) >= -1 and log(1 / q).
    """
    p, q = logp.detach(), ref_logp.detach()  # logs
    # log((1-q)/(1-p)) = log(1 - q x) with x = (1 - p/q) / (1-p), which keeps its digits where both are tiny.
    x = -torch.expm1((p - q).clamp(max=0.0)) / -torch.expm1(p.clamp(max=MAX_LOGP))
    chance = q.exp().clamp(min=1e-6)  # below, log1p(-q x) / q is -x to seven digits
    fallen = torch.log1p(-(chance * x).clamp(max=1 - 1e-7)) / chance
    value = torch.where(p >= q, p - q, -torch.expm1(q) * fallen)
    weighted = odds_weight(logp, ref_logp) * logp
    return weighted + (value - weighted).detach()


@dataclass(frozen=True, kw_only=True)
class BNF(Objective):
    """Likelihood of a completion, or against it, with feedback that fades once a token has moved away from
    the reference.

        grad L(y, label) = -label * (1/n) * sum_t w_t * grad logp_t,   w_t = min(1, odds(pi_t) / odds(ref_t))
        L(y, label)      = -label * (1/n) * sum_t F_t,   F_t = log(p/q) if p >= q, else (1-q)/q *
        log((1-q)/(1-p))

    Mao et al., "As Simple as Fine-tuning: LLM Alignment via Bidirectional Negative Feedback Loss", ICLR 2025,
    arXiv
    2410.04834. The paper states the loss with a full target distribution over the vocabulary that is held
    fixed in the gradient; the gradient here is the same, exactly, and needs only the two log-probabilities of
    each token. The paper's value is not what its gradient lowers; ours is: L is 0 at the reference and falls
    as training continues.

    Args:
        reduction: what n is. "sequence_mean": the completion's own number of tokens. "pair_min": that of the
            shorter completion of its pair, so that a longer answer weighs more; this one needs pairs.
    """

    name = "bnf"
    learning_rates = our_rate(
        2e-6,
        "the rate of the runs on HH and of the demo's first version in LOG.md; runs on own samples "
        "used up to 2e-5. The paper's rate was not found. oat, which has the loss from the paper's first "
        "author, has 5e-7 by default for all its losses",
    )
    needs = frozenset({"ref_logp"})

    reduction: Literal["sequence_mean", "pair_min"] = "sequence_mean"

    @property
    def signal(self) -> type[Labels] | type[Pairs]:
        return Labels if self.reduction == "sequence_mean" else Pairs

    def weights(self, lengths: Int[Tensor, " C"], signal: Labels | Pairs) -> Float[Tensor, " U"]:
        """One per completion, or per pair."""
        units = signal.label if isinstance(signal, Labels) else signal.chosen
        return torch.ones(units.shape, dtype=torch.get_default_dtype(), device=units.device)

    @property
    def length_normalized(self) -> bool:
        return self.reduction == "sequence_mean"

    def __call__(self, scores: TokenScores, signal: Labels | Pairs) -> Losses:
        weight = odds_weight(scores.logp, reference(scores))
        weighted = potential(scores.logp, reference(scores))
        if isinstance(signal, Labels):
            per_unit = -signal.label * mean_tokens(weighted, scores.lengths)
            labels = signal
        else:
            shorter = torch.minimum(scores.lengths[signal.chosen], scores.lengths[signal.rejected])
            total = sum_tokens(weighted, scores.lengths)
            # Half, so that both reductions agree when the two completions are equally long.
            per_unit = (total[signal.rejected] - total[signal.chosen]) / (2 * shorter)
            labels = _labels(signal, scores.lengths)
        return Losses(
            per_unit=per_unit,
            weight=self.weights(scores.lengths, signal).to(per_unit.dtype),
            metrics=label_metrics(scores, labels) | _weight_metrics(weight, scores.lengths, labels),
        )


def _labels(pairs: Pairs, lengths: Int[Tensor, " C"]) -> Labels:
    label = torch.zeros_like(lengths)
    label[pairs.chosen], label[pairs.rejected] = 1, -1
    return Labels(label=label)


def _weight_metrics(
    weight: Float[Tensor, " N"], lengths: Int[Tensor, " C"], signal: Labels
) -> dict[str, Entries]:
    """Mean feedback weight per token, in [0, 1], on each side: 1 is the full push of likelihood, 0 is none."""
    label = per_token(signal.label.to(weight.dtype), lengths)
    return {
        "bnf/weight_chosen": Entries(values=weight, counted=label > 0),
        "bnf/weight_rejected": Entries(values=weight, counted=label < 0),
    }
