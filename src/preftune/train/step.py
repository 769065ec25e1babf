"""One optimiser update: the loss of a whole step, cut up in any way, with the same gradient."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preftune.errors import TrainingError
from preftune.objectives import Objective, reduce_losses
from preftune.types import Signal, TokenScores


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A piece of a step: what can be scored at once, with the signal of its completions.

    `content` is whatever the scoring function understands; `origins` name the rows it came from.
    """

    content: object
    lengths: Tensor
    signal: Signal
    origins: tuple[str, ...]


Score = Callable[[MicroBatch], TokenScores]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: float
    grad_norm: float
    metrics: Mapping[str, float]


class MetricMeter:
    """Mean over all entries of each metric of a step or of an evaluation."""

    def __init__(self) -> None:
        self._sum: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        for name, values in metrics.items():
            self._sum[name] = self._sum.get(name, 0.0) + float(values.double().sum())
            self._count[name] = self._count.get(name, 0) + values.numel()

    def means(self) -> dict[str, float]:
        """A metric without entries (no rejected completion in the step, say) is left out."""
        return {name: total / self._count[name] for name, total in self._sum.items() if self._count[name]}


def global_weight(micro_batches: Iterable[MicroBatch], objective: Objective) -> float:
    """Weight of all units of a step; known before any score."""
    total = sum(float(objective.weights(piece.lengths, piece.signal).sum()) for piece in micro_batches)
    if not total > 0:
        raise TrainingError("A step has nothing to learn from", got="units of weight zero only",
                            expected="a preferred completion or a pair", do="Raise --batch_size")  # fmt: skip
    return total


def accumulate_gradient(
    micro_batches: Sequence[MicroBatch], objective: Objective, score: Score
) -> tuple[float, dict[str, float]]:
    """Add the gradient of the step's loss to `.grad`; returns the loss and the metrics."""
    total = global_weight(micro_batches, objective)
    loss_sum, meter = 0.0, MetricMeter()
    for piece in micro_batches:
        losses = objective(score(piece), piece.signal)
        loss = reduce_losses(losses, total)
        if not bool(torch.isfinite(loss)):
            raise TrainingError("The loss is not finite", got=f"{loss.item()} in rows {_named(piece.origins)}",
                                do="Look at these rows; a lower --learning_rate helps if earlier steps were fine")  # fmt: skip
        loss.backward()
        loss_sum += loss.item()
        meter.add(losses.metrics)
    return loss_sum, meter.means()


def run_step(
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    score: Score,
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    max_grad_norm: float,
) -> StepResult:
    """Gradient of the whole step, clipping, update. A loss or gradient that is not finite stops it before the update."""
    optimiser.zero_grad(set_to_none=True)
    loss, metrics = accumulate_gradient(micro_batches, objective, score)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm)):
        culprits = _rows_with_bad_gradient(micro_batches, objective, score, parameters)
        raise TrainingError("The gradient is not finite", got=f"norm {norm.item()} from rows {_named(culprits)}",
                            do="Look at these rows; a lower --learning_rate helps if earlier steps were fine")  # fmt: skip
    if max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimiser.step()
    return StepResult(loss=loss, grad_norm=norm.item(), metrics=metrics)


def _rows_with_bad_gradient(micro_batches, objective, score, parameters) -> tuple[str, ...]:
    """The step failed: find which pieces give a bad gradient alone."""
    found: list[str] = []
    for piece in micro_batches:
        for parameter in parameters:
            parameter.grad = None
        accumulate_gradient([piece], objective, score)
        if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
            found += piece.origins
    return tuple(found) or tuple(origin for piece in micro_batches for origin in piece.origins)


def _named(origins: Sequence[str], most: int = 8) -> str:
    return ", ".join(origins[:most]) + (f" and {len(origins) - most} more" if len(origins) > most else "")
