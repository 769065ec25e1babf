"""What objectives on labeled singles share: one unit per completion, whose label gives the direction."""

from collections.abc import Mapping

import torch
from torch import Tensor

from preftune.objectives.base import label_metrics
from preftune.types import Float, Labels, Losses, Metric, TokenScores


def label_weights(signal: Labels) -> Float[Tensor, " C"]:
    """One per labeled completion; zero without a label."""
    return (signal.label != 0).to(torch.get_default_dtype())


def label_losses(
    per_unit: Float[Tensor, " C"],
    scores: TokenScores,
    signal: Labels,
    extra: Mapping[str, Metric] | None = None,
) -> Losses:
    """The losses of labeled completions, each of weight one, with the usual metrics and some more."""
    return Losses(
        per_unit=per_unit,
        weight=label_weights(signal).to(per_unit.dtype),
        metrics={**label_metrics(scores, signal), **(extra or {})},
    )


def anchored(
    rewards: Float[Tensor, " C"], signal: Labels, anchor: Float[Tensor, ""] | float = 0.0
) -> Float[Tensor, " C"]:
    """1 - sigma(label * (reward - anchor)): KTO's loss, and with an anchor of 0 that of APO-zero on singles."""
    return torch.sigmoid(-signal.label * (rewards - anchor))
