"""What objectives that couple the units of a step share: the step's scores, an order of its pairs, and what
is remembered.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from preftune.errors import StorageError
from preftune.objectives.base import State
from preftune.types import Float, Int, Pairs, StepView, TokenScores

_MOMENTUM = 0.9  # the authors' of both methods that have running moments
_NO_SPREAD = 1e-6


def step_scores(step: StepView) -> TokenScores:
    """The scores of all completions. Asking for them without declaring "scores" in `couples` is a bug of the
    objective.
    """
    assert step.scores is not None, "the objective does not declare scores in its couples"
    return step.scores


def check_state(objective: str, state: State, initial: Mapping[str, Tensor]) -> None:
    """A state that comes in has the names, dtypes and numbers of axes of the initial one."""

    def shape(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, int]]:
        return {name: (tensor.dtype, tensor.ndim) for name, tensor in sorted(tensors.items())}

    if shape(state) != shape(initial):
        raise StorageError(
            f"The state of {objective} does not fit",
            got=_described(state),
            expected=_described(initial),
            do="Start a new run, or resume with the objective that the checkpoint was written with",
        )


def _described(state: Mapping[str, Tensor]) -> str:
    parts = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')}, {tensor.ndim} axes)"
        for name, tensor in sorted(state.items())
    ]
    return ", ".join(parts) or "nothing"


# --- an order that does not depend on the position of a group in its step ---


def lexicographic(*keys: Tensor) -> Int[Tensor, " _"]:
    """Indices that sort by the first key, what ties in it by the second, and so on; what ties in all keeps
    its order.
    """
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def pair_keys(
    step: StepView, signal: Pairs
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Integers that distinguish pairs, almost always, without any score: their prompt and their two lengths.

    Scores of near-equal pairs are ordered by rounding, which depends on how a step is cut; these are not.
    """
    return step.prompt[signal.chosen], step.lengths[signal.chosen], step.lengths[signal.rejected]


# --- mean and deviation over the steps ---


def initial_moments() -> dict[str, Tensor]:
    """Of `update_moments`: two sums that decay, and how many steps they hold."""
    return {
        "mean": torch.zeros((), dtype=torch.float64),
        "std": torch.zeros((), dtype=torch.float64),
        "steps": torch.zeros((), dtype=torch.int64),
    }


def update_moments(
    values: Float[Tensor, " U"], state: State
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Tensor]]:
    """(mean, standard deviation, new state): averages over the steps, this one included, that fade by 0.9 a
    step.

    Both start from zero, so they are divided by the weight they hold so far, 1 - 0.9^steps: in the first step
    they are that step's own mean and deviation. A single value does not determine the deviation, which then
    stays as it was.
    """
    values, steps = values.double(), int(state["steps"])
    before, now = (1 - _MOMENTUM ** max(count, 1) for count in (steps, steps + 1))
    old = {name: state[name].to(values.device) for name in ("mean", "std")}
    spread = values.std() if len(values) > 1 else old["std"] / before
    new = {
        "mean": torch.lerp(values.mean(), old["mean"], _MOMENTUM),
        "std": torch.lerp(spread, old["std"], _MOMENTUM),
        "steps": state["steps"] + 1,
    }
    return new["mean"] / now, new["std"] / now, new


def standardized_in_fp64(
    values: Float[Tensor, " U"], mean: Float[Tensor, ""], std: Float[Tensor, ""]
) -> Float[Tensor, " U"]:
    """(x - mean) / std in fp64. A deviation of nearly nothing, as where policy and reference are equal, makes
    all 0.
    """
    return torch.where(std < _NO_SPREAD, 0.0, (values.double() - mean) / std.clamp(min=_NO_SPREAD))
