"""One optimiser update: the loss of a whole step, cut up in any way, with the same gradient."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import DivergenceError, TrainingError
from preftune.objectives import Coupled, Objective, State, reduce_losses
from preftune.types import Coupling, Hybrid, Labels, Pairs, Rewards, Signal, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A piece of a step: what can be scored at once, with the signal of its completions.

    `content` is whatever the scoring function understands; `origins` name the rows it came from.
    """

    content: object
    lengths: Tensor
    prompt: Tensor  # [C], a digest of each completion's prompt
    signal: Signal
    origins: tuple[str, ...]


Score = Callable[[MicroBatch], TokenScores]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: float
    grad_norm: float
    metrics: Mapping[str, float]
    state: State  # of the objective's estimators after the step


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
    total = sum(float(objective.weights(piece.lengths, piece.signal).double().sum()) for piece in micro_batches)
    if not total > 0:
        raise TrainingError("A step has nothing to learn from", got="units of weight zero only",
                            expected="a preferred completion or a pair", do="Raise --batch_size")  # fmt: skip
    return total


def accumulate_gradient(
    micro_batches: Sequence[MicroBatch], objective: Objective, score: Score, couplings: Sequence[Coupling | None]
) -> tuple[float, dict[str, float]]:
    """Add the gradient of the step's loss to `.grad`; returns the loss and the metrics."""
    total = global_weight(micro_batches, objective)
    loss_sum, meter = 0.0, MetricMeter()
    for piece, coupling in zip(micro_batches, couplings, strict=True):
        losses = objective(replace(score(piece), coupling=coupling), piece.signal)
        loss = reduce_losses(losses, total)
        if not bool(torch.isfinite(loss)):
            raise DivergenceError("The loss is not finite", got=f"{loss.item()} in rows {_named(piece.origins)}",
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
    *,
    state: State | None = None,
    mismatched: Sequence[MicroBatch] = (),
) -> StepResult:
    """Gradient of the whole step, clipping, update. A loss or gradient that is not finite stops it before the update.

    `state` and `mismatched` matter to coupled objectives only; without a state they start from their initial one.
    """
    optimiser.zero_grad(set_to_none=True)
    couplings, new_state = couple_step(micro_batches, mismatched, objective, score, state)
    loss, metrics = accumulate_gradient(micro_batches, objective, score, couplings)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm)):
        culprits = _rows_with_bad_gradient(micro_batches, objective, score, couplings, parameters)
        raise DivergenceError("The gradient is not finite", got=f"norm {norm.item()} from rows {_named(culprits)}",
                              do="Look at these rows; a lower --learning_rate helps if earlier steps were fine")  # fmt: skip
    if max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimiser.step()
    return StepResult(loss=loss, grad_norm=norm.item(), metrics=metrics, state=new_state)


def _rows_with_bad_gradient(micro_batches, objective, score, couplings, parameters) -> tuple[str, ...]:
    """The step failed: find which pieces give a bad gradient alone."""
    found: list[str] = []
    for piece, coupling in zip(micro_batches, couplings, strict=True):
        for parameter in parameters:
            parameter.grad = None
        accumulate_gradient([piece], objective, score, [coupling])
        if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
            found += piece.origins
    return tuple(found) or tuple(origin for piece in micro_batches for origin in piece.origins)


def _named(origins: Sequence[str], most: int = 8) -> str:
    return ", ".join(origins[:most]) + (f" and {len(origins) - most} more" if len(origins) > most else "")


# --- the pass before the gradient ---


@torch.no_grad()
def couple_step(
    micro_batches: Sequence[MicroBatch],
    mismatched: Sequence[MicroBatch],
    objective: Objective,
    score: Score,
    state: State | None,
) -> tuple[list[Coupling | None], State]:
    """What couples the units of each piece to the whole step, and the new state; nothing where the objective wants none.

    Costs a forward pass over what the objective's `couples` names.
    """
    if "coupling" not in objective.needs:
        return [None] * len(micro_batches), {}
    assert isinstance(objective, Coupled)
    view = StepView(
        lengths=torch.cat([piece.lengths for piece in micro_batches]),
        prompt=torch.cat([piece.prompt for piece in micro_batches]),
        signal=join_signals([piece.signal for piece in micro_batches], [len(piece.lengths) for piece in micro_batches]),
        scores=join_scores([score(piece) for piece in micro_batches]) if "scores" in objective.couples else None,
        mismatched=join_scores([score(piece) for piece in mismatched]) if mismatched else None,
    )
    coupling, new_state = objective.couple(view, objective.initial_state() if state is None else state)
    return _cut_coupling(coupling, micro_batches), new_state


def join_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of several pieces as those of one."""
    tensors = [f.name for f in fields(TokenScores) if torch.is_tensor(getattr(parts[0], f.name))]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in tensors}
    return TokenScores(**joined)


def join_signals(parts: Sequence[Signal], num_completions: Sequence[int]) -> Signal:
    """The signals of several pieces as one: indices of completions, and of groups, run on."""
    starts = [sum(num_completions[:i]) for i in range(len(parts))]
    first = parts[0]
    if isinstance(first, Labels):
        return Labels(label=torch.cat([part.label for part in parts if isinstance(part, Labels)]))
    if isinstance(first, Pairs | Hybrid):
        indices = {
            side: torch.cat([start + getattr(part, side) for start, part in zip(starts, parts, strict=True)])
            for side in ("chosen", "rejected")
        }
        if isinstance(first, Hybrid):
            return Hybrid(**indices, source=torch.cat([part.source for part in parts if isinstance(part, Hybrid)]))
        chances = [part.probability for part in parts if isinstance(part, Pairs) and part.probability is not None]
        return Pairs(**indices, probability=torch.cat(chances) if len(chances) == len(parts) else None)
    groups, count = [], 0
    for part in parts:
        assert isinstance(part, Rewards)
        groups.append(count + part.group)
        count += int(part.group.max()) + 1
    return Rewards(reward=torch.cat([part.reward for part in parts if isinstance(part, Rewards)]), group=torch.cat(groups))


def _cut_coupling(coupling: Coupling, micro_batches: Sequence[MicroBatch]) -> list[Coupling | None]:
    """Each piece's share of the step's coupling."""
    sizes = [len(piece.lengths) for piece in micro_batches]
    counts = [len(piece.signal.chosen) if isinstance(piece.signal, Pairs | Hybrid) else 0 for piece in micro_batches]
    completion = {name: values.split(sizes) for name, values in coupling.completion.items()}
    pair = {name: values.split(counts) for name, values in coupling.pair.items()}
    return [
        Coupling(
            whole=coupling.whole,
            completion={name: parts[i] for name, parts in completion.items()},
            pair={name: parts[i] for name, parts in pair.items()},
        )
        for i in range(len(micro_batches))
    ]
