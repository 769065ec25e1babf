"""DPO: logistic loss on the difference of two log-ratios."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.errors import ConfigError
from preftune.objectives.base import log_ratio, pair_metrics
from preftune.types import Losses, Pairs, TokenScores


@dataclass(frozen=True, kw_only=True)
class DPO:
    """The chosen completion's log-ratio above the rejected one's, by a logistic loss.

        L = -(1 - e) log sigma(beta * D) - e log sigma(-beta * D),   D = h(chosen) - h(rejected)

    with h the log-ratio of a completion to the reference, summed over tokens. Rafailov et al., "Direct Preference
    Optimization", NeurIPS 2023, arXiv 2305.18290, equation 7; e > 0 is their conservative form (cDPO), whose gradient
    vanishes at sigma(beta * D) = 1 - e.

    Args:
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, the probability that a preference was labelled the wrong way round, in [0, 0.5).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ConfigError("dpo: beta is out of range", got=self.beta, expected="a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError("dpo: label_smoothing is out of range", got=self.label_smoothing, expected="[0, 0.5)")

    @property
    def signal(self) -> type[Pairs]:
        return Pairs

    def weights(self, lengths: Int[Tensor, " C"], signal: Pairs) -> Float[Tensor, " U"]:
        """One per pair."""
        return torch.ones(signal.chosen.shape, dtype=torch.get_default_dtype(), device=signal.chosen.device)

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        ratio = log_ratio(scores)
        margin = self.beta * (ratio[signal.chosen] - ratio[signal.rejected])
        per_unit = -(1 - self.label_smoothing) * logsigmoid(margin)
        if self.label_smoothing > 0:
            per_unit = per_unit - self.label_smoothing * logsigmoid(-margin)
        return Losses(
            per_unit=per_unit,
            weight=self.weights(scores.lengths, signal).to(per_unit.dtype),
            metrics=pair_metrics(scores, signal, self.beta),
        )
