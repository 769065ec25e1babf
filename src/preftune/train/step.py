"""One optimizer update: the loss of a whole step, cut up in any way, with the same gradient."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import accumulate, chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import DivergenceError
from preftune.objectives import Coupled, Objective, State, reduce_losses
from preftune.objectives.base import PICKED_ON, join_lengths, num_tokens
from preftune.train.processes import ALONE, Processes
from preftune.train.router_loss import RouterLoss, RouterMeter, meter_of
from preftune.types import (
    Coupling,
    Entries,
    Hybrid,
    Labels,
    Metric,
    Pairs,
    Rewards,
    Signal,
    StepView,
    TokenScores,
)


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
    idle: bool = False  # scored because the other processes score too, and of no weight


Score = Callable[[MicroBatch], TokenScores]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: float
    grad_norm: float
    metrics: Mapping[str, float]
    state: State  # of the objective's estimators after the step
    expert_loads: tuple[float, ...] = ()  # share of each expert of a mixture, over all layers


class MetricMeter:
    """Mean over all entries of each metric of a step or of an evaluation.

    Sums stay on the device until `read`, which fetches all of them at once: every number that is fetched makes
    the processor wait for the GPU.
    """

    def __init__(self) -> None:
        self._sum: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._waiting: list[tuple[str, Tensor, Tensor | int]] = []

    def add(self, metrics: Mapping[str, Metric]) -> None:
        for name, values in metrics.items():
            if isinstance(values, Entries) and values.counted.device.type in PICKED_ON:
                values = values.taken()
            if isinstance(values, Entries):
                counted = values.values.where(values.counted, 0.0)
                self._waiting.append((name, _exact(counted).sum(), _exact(values.counted).sum()))
            else:
                self._waiting.append((name, _exact(values).sum(), values.numel()))

    def read(self, others: Sequence[Tensor] = ()) -> list[float]:
        """Fetch what has been added, and other single numbers with it, which are returned."""
        sums = [total for _, total, _ in self._waiting]
        counts = [count for _, _, count in self._waiting if isinstance(count, Tensor)]
        fetched = iter(_fetched([*others, *sums, *counts]))
        found = list(islice(fetched, len(others)))
        totals = list(islice(fetched, len(sums)))
        for (name, _, count), total in zip(self._waiting, totals, strict=True):
            self._sum[name] = self._sum.get(name, 0.0) + total
            entries = int(next(fetched)) if isinstance(count, Tensor) else count
            self._count[name] = self._count.get(name, 0) + entries
        self._waiting = []
        return found

    def join(self, processes: Processes) -> None:
        """Add what the other processes have."""
        self.read()
        if processes.size == 1:
            return
        parts = processes.gather((self._sum, self._count))
        names = dict.fromkeys(name for total, _ in parts for name in total)
        self._sum = {name: sum(total.get(name, 0.0) for total, _ in parts) for name in names}
        self._count = {name: sum(count.get(name, 0) for _, count in parts) for name in names}

    def means(self) -> dict[str, float]:
        """A metric without entries (for example, no rejected completion in the step) is left out."""
        return {name: total / self._count[name] for name, total in self._sum.items() if self._count[name]}


def _exact(values: Tensor) -> Tensor:
    """In fp64, which MPS devices do not have."""
    return (values.detach().cpu() if values.device.type == "mps" else values.detach()).double()


def _fetched(numbers: Sequence[Tensor]) -> list[float]:
    """Single numbers of a device, all at once."""
    return torch.stack([_exact(one) for one in numbers]).tolist() if numbers else []


def global_weight(
    micro_batches: Iterable[MicroBatch], objective: Objective, processes: Processes = ALONE
) -> float:
    """Weight of all units of a step, in all processes; known before any score. It is 0 where the objective
    puts no weight on anything in the step, as on groups whose rewards are all equal.
    """
    weights = [
        _exact(objective.weights(piece.lengths, piece.signal)).sum()
        for piece in micro_batches
        if not piece.idle
    ]
    return processes.total(sum(_fetched(weights)))


def accumulate_gradient(
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    score: Score,
    couplings: Sequence[Coupling | None],
    total: float,
    router: RouterMeter | None = None,
) -> tuple[list[Tensor], MetricMeter]:
    """Add the gradient of these pieces' part of the step's loss to `.grad`; returns the loss of each piece, 0 of
    an idle one, and the metrics. `router` adds the auxiliary loss of experts to the gradient alone.

    `total` is the weight of the whole step. Nothing is fetched from the device, and no loss looked at.
    """
    found, meter = [], MetricMeter()
    for piece, coupling in zip(micro_batches, couplings, strict=True):
        scores = score(piece)
        if piece.idle:
            scores.logp.backward(torch.zeros_like(scores.logp))
            found.append(torch.zeros((), device=scores.logp.device))
            continue
        losses = objective(replace(scores, coupling=coupling), piece.signal)
        loss = reduce_losses(losses, total)
        extra = 0.0 if router is None or scores.router is None else router.part(scores.router)
        (loss + extra).backward()
        found.append(loss.detach())
        meter.add(losses.metrics)
    return found, meter


def _loss_error(losses: Sequence[float], micro_batches: Sequence[MicroBatch]) -> DivergenceError | None:
    """An error that names the first piece whose loss is not finite; None if all are."""
    for loss, piece in zip(losses, micro_batches, strict=True):
        if not math.isfinite(loss):
            return DivergenceError(
                "The loss is not finite",
                got=f"{loss} in rows {_named(piece.origins)}",
                do="Look at these rows; a lower --learning_rate helps if earlier steps were fine",
            )
    return None


def run_step(
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    score: Score,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    *,
    state: State | None = None,
    mismatched: Sequence[MicroBatch] = (),
    processes: Processes = ALONE,
    router: RouterLoss | None = None,
) -> StepResult:
    """Gradient of the whole step, clipping, update. A loss or gradient that is not finite stops it before the
    update. A step without any weight is no update: it is logged with a loss of 0 and `step/empty` 1.

    `state` and `mismatched` matter to coupled objectives only; without a state they start from their initial
    one. With several processes the micro-batches are this one's share of the step, and loss, metrics and
    update are those of all.
    """
    optimizer.zero_grad(set_to_none=True)
    total = global_weight(micro_batches, objective, processes)
    if not total > 0:
        return StepResult(loss=0.0, grad_norm=0.0, metrics={"step/empty": 1.0}, state=state or {})
    couplings, new_state = couple_step(micro_batches, mismatched, objective, score, state, processes)
    routing = [(piece.content, piece.idle) for piece in micro_batches]
    routers = None if router is None else meter_of(router, routing, processes)
    # Nothing is autocast here, but weights that micro-batches cast to bf16 stay cast until the outermost of
    # such contexts ends.
    casts = torch.autocast(parameters[0].device.type, enabled=False)
    with casts:
        losses, meter = accumulate_gradient(micro_batches, objective, score, couplings, total, routers)
    processes.sum_gradients(parameters)
    norm = processes.norm([p.grad for p in parameters if p.grad is not None])
    norm_value, *mine = meter.read([norm, *losses])
    processes.agree(_loss_error(mine, micro_batches))
    loss = processes.total(sum(mine))
    meter.join(processes)
    if not math.isfinite(norm_value):
        rows = _rows_with_bad_gradient(
            micro_batches, objective, score, couplings, parameters, total, processes, routers
        )
        processes.agree(_not_finite(norm_value, processes.gather(rows)))
    if max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimizer.step()
    routed, loads = ({}, ()) if routers is None else routers.metrics(processes)
    return StepResult(
        loss=loss, grad_norm=norm_value, metrics=meter.means() | routed, state=new_state, expert_loads=loads
    )


def _not_finite(norm: float, rows: Sequence[Sequence[str]]) -> DivergenceError:
    """`rows` are those of each process."""
    return DivergenceError(
        "The gradient is not finite",
        got=f"norm {norm} from rows {_named([row for part in rows for row in part])}",
        do="Look at these rows; a lower --learning_rate helps if earlier steps were fine",
    )


def _rows_with_bad_gradient(
    micro_batches, objective, score, couplings, parameters, total, processes, routers
) -> tuple[str, ...]:
    """The step failed: find which pieces give a bad gradient alone; in lockstep, together with the others'
    pieces.
    """
    found: list[str] = []
    for piece, coupling in zip(micro_batches, couplings, strict=True):
        for parameter in parameters:
            parameter.grad = None
        accumulate_gradient([piece], objective, score, [coupling], total, routers)
        gradients = [p.grad for p in parameters if p.grad is not None]
        whole = processes.norm(gradients) if processes.lockstep else torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(whole)) and not piece.idle:
            found += piece.origins
    return tuple(found) or tuple(
        origin for piece in micro_batches if not piece.idle for origin in piece.origins
    )


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
    processes: Processes = ALONE,
) -> tuple[list[Coupling | None], State]:
    """What couples the units of each piece to the whole step, and the new state; nothing where the objective
    wants none.

    Costs a forward pass over what the objective's `couples` names. The pieces are those of this process, the
    step is that of all; with several processes it is put together on the CPU, where each can read what the
    others have.
    """
    if "coupling" not in objective.needs:
        return [None] * len(micro_batches), {}
    assert isinstance(objective, Coupled)
    mine = []
    for piece in micro_batches:
        scores = score(piece) if "scores" in objective.couples else None
        if not piece.idle:
            mine.append((piece.lengths, piece.prompt, piece.signal, scores))
    others = [scores for scores, piece in [(score(piece), piece) for piece in mismatched] if not piece.idle]
    if processes.size > 1:
        mine, others = _to_cpu(mine), _to_cpu(others)
    parts = processes.gather((mine, others))
    whole = [one for pieces, _ in parts for one in pieces]
    others = [scores for _, found in parts for scores in found]
    scores = [one for _, _, _, one in whole if one is not None]
    view = StepView(
        lengths=join_lengths([lengths for lengths, _, _, _ in whole]),
        prompt=torch.cat([prompt for _, prompt, _, _ in whole]),
        signal=join_signals([signal for _, _, signal, _ in whole], [lengths for lengths, _, _, _ in whole]),
        scores=join_scores(scores) if scores else None,
        mismatched=join_scores(others) if others else None,
    )
    coupling, new_state = objective.couple(view, objective.initial_state() if state is None else state)
    before = sum(len(pieces) for pieces, _ in parts[: processes.rank])
    sizes = [
        (len(lengths), len(signal.chosen) if isinstance(signal, Pairs | Hybrid) else 0)
        for lengths, _, signal, _ in whole
    ]
    cut = iter(_cut_coupling(coupling, sizes)[before : before + len(mine)])
    return [
        None if piece.idle else _coupling_on(piece.lengths.device, next(cut)) for piece in micro_batches
    ], new_state


def _to_cpu(found: Any) -> Any:
    """Lists, tuples and dataclasses of tensors, on the CPU."""
    if isinstance(found, list | tuple):
        return type(found)(_to_cpu(one) for one in found)
    if is_dataclass(found) and not isinstance(found, type):
        return replace(found, **{f.name: _to_cpu(getattr(found, f.name)) for f in fields(found)})
    return found.cpu() if torch.is_tensor(found) else found


def _coupling_on(device: torch.device, coupling: Coupling) -> Coupling:
    parts = {
        f.name: {name: value.to(device) for name, value in getattr(coupling, f.name).items()}
        for f in fields(coupling)
    }
    return Coupling(**parts)


def join_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of several pieces as those of one."""
    tensors = [f.name for f in fields(TokenScores) if torch.is_tensor(getattr(parts[0], f.name))]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in tensors}
    joined["lengths"] = join_lengths([part.lengths for part in parts])
    return TokenScores(**joined)


def join_signals(parts: Sequence[Signal], lengths: Sequence[Tensor]) -> Signal:
    """The signals of pieces with completions of these lengths as one: indices of completions and groups run on."""
    num_completions = [len(one) for one in lengths]
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
            hybrid = [part for part in parts if isinstance(part, Hybrid)]
            source = torch.cat([part.source for part in hybrid])
            return Hybrid(**indices, source=source, group=_joined_groups([part.group for part in hybrid]))
        chances = [
            part.probability for part in parts if isinstance(part, Pairs) and part.probability is not None
        ]
        return Pairs(**indices, probability=torch.cat(chances) if len(chances) == len(parts) else None)
    rewarded = [part for part in parts if isinstance(part, Rewards)]
    sizes = [part.sizes for part in rewarded if part.sizes is not None]
    return Rewards(
        sizes=tuple(chain.from_iterable(sizes)) if len(sizes) == len(rewarded) else None,
        reward=torch.cat([part.reward for part in rewarded]),
        group=_joined_groups([part.group for part in rewarded], [len(known) for known in sizes]),
        step=_joined_steps(rewarded, lengths),
    )


def _joined_steps(parts: Sequence[Rewards], lengths: Sequence[Tensor]) -> Tensor | None:
    """Rewards of steps; NaN for pieces that have none."""
    if all(part.step is None for part in parts):
        return None
    return torch.cat(
        [
            part.reward.new_full((num_tokens(sizes),), torch.nan) if part.step is None else part.step
            for part, sizes in zip(parts, lengths, strict=True)
        ]
    )


def _joined_groups(parts: Sequence[Tensor], counts: Sequence[int] = ()) -> Tensor:
    """Group indices of several pieces that run on; the pieces have `counts` groups, where all are known."""
    if len(counts) < len(parts):
        counts = [last + 1 for last in torch.stack([part.max() for part in parts]).tolist()]
    starts = [0, *accumulate(counts)]
    return torch.cat([start + part for start, part in zip(starts, parts, strict=False)])


def _cut_coupling(coupling: Coupling, sizes: Sequence[tuple[int, int]]) -> list[Coupling]:
    """The share of the step's coupling that belongs to each piece, of a given number of completions and pairs."""
    completion = {
        name: values.split([count for count, _ in sizes]) for name, values in coupling.completion.items()
    }
    pair = {name: values.split([count for _, count in sizes]) for name, values in coupling.pair.items()}
    return [
        Coupling(
            whole=coupling.whole,
            completion={name: parts[i] for name, parts in completion.items()},
            pair={name: parts[i] for name, parts in pair.items()},
        )
        for i in range(len(sizes))
    ]
