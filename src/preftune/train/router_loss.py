"""The auxiliary loss of a mixture of experts over a whole step, however the step is cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce

from jaxtyping import Float
from torch import Tensor

from preftune.model.router import auxiliary_loss
from preftune.train.processes import Processes
from preftune.types import RouterUse


@dataclass(frozen=True, kw_only=True)
class RouterLoss:
    """How a step reads the routers: `route` makes a pass over the content of a micro-batch without gradients."""

    coefficient: float
    route: Callable[[object], RouterUse]


class RouterMeter:
    """The routers of one step: the parts of its auxiliary loss, and what is logged.

    The loss multiplies the load of each expert by its mean probability, both over the whole step. So the load of
    the step is needed before the first gradient: `whole`, or None where one micro-batch is the step.
    """

    def __init__(self, coefficient: float, whole: RouterUse | None) -> None:
        self.coefficient, self.whole = coefficient, whole
        self._parts: list[RouterUse] = []

    def part(self, use: RouterUse) -> Float[Tensor, ""]:
        """What a micro-batch adds to the loss of the step."""
        self._parts.append(_frozen(use))
        whole = use if self.whole is None else self.whole
        load = whole.count.sum(0) / whole.rows
        return self.coefficient * len(load) * (load @ use.probability) / whole.rows

    def metrics(self, processes: Processes) -> tuple[dict[str, float], tuple[float, ...]]:
        """Auxiliary loss, mean entropy, the largest and the smallest load of an expert in any layer (1 is an even
        load); and the share of each expert, over all layers.
        """
        mine = _on_cpu(_summed(self._parts)) if self._parts else None
        parts = [part for part in processes.gather(mine) if part is not None]
        if not parts:
            return {}, ()
        use = _summed(parts)
        load = use.count / use.count.mean(1, keepdim=True)
        numbers = {
            "router/aux_loss": float(auxiliary_loss(use)),
            "router/entropy": float(use.entropy / use.rows),
            "router/load_max": float(load.max()),
            "router/load_min": float(load.min()),
        }
        shares = use.count.sum(0) / use.count.sum()
        return numbers, tuple(round(share, 6) for share in shares.tolist())


def meter_of(router: RouterLoss, pieces: Sequence[tuple[object, bool]], processes: Processes) -> RouterMeter:
    """The meter of a step of these pieces (content, whether it is idle). It costs a pass without gradients over
    each, unless the step is one piece or the coefficient is 0.
    """
    if not router.coefficient or (len(pieces) == 1 and processes.size == 1):
        return RouterMeter(router.coefficient, None)
    uses = [(router.route(content), idle) for content, idle in pieces]
    mine = [_on_cpu(use) for use, idle in uses if not idle]
    whole = _summed([use for part in processes.gather(mine) for use in part])
    device = uses[0][0].rows.device if uses else whole.rows.device
    return RouterMeter(router.coefficient, _mapped(lambda tensor: tensor.to(device), whole))


def _mapped(change: Callable[[Tensor], Tensor], use: RouterUse) -> RouterUse:
    return RouterUse(**{f.name: change(getattr(use, f.name)) for f in fields(use)})


def _frozen(use: RouterUse) -> RouterUse:
    return _mapped(Tensor.detach, use)


def _on_cpu(use: RouterUse) -> RouterUse:
    return _mapped(lambda tensor: tensor.detach().cpu(), use)


def _summed(uses: Sequence[RouterUse]) -> RouterUse:
    return reduce(
        lambda a, b: RouterUse(**{f.name: getattr(a, f.name) + getattr(b, f.name) for f in fields(a)}), uses
    )
