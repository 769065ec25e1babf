"""AdamW for weights that are kept in bf16, where a step is far below what rounding to the nearest would
notice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adamw import adamw

_PIECE, _PIECE_CUDA = 2**18, 2**24
"""Weights that are computed at once, for each of which 30 bytes are held: they stay in a processor's cache,
and keep a GPU busy.
"""


def round_by_chance(exact: Float[Tensor, "*N"], noise: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """fp32, in place, to one of the two neighbors that bf16 can hold, each with the probability that makes
    the mean exact.

    `noise` is uniform in [0, 65536), added to the 16 bits that bf16 lacks (Gupta et al., "Deep Learning with
    Limited Numerical Precision", 2015). What bf16 can hold stays as it is.
    """
    exact.view(torch.int32).add_(noise).bitwise_and_(-65536)
    return exact


def draw_noise(
    words: Int[Tensor, " W"], noise: Int[Tensor, " N"], generator: torch.Generator
) -> Int[Tensor, " N"]:
    """Fill `noise`, int32, uniformly in [0, 65536): four of each of the `words`, int64, of which there may be
    more.
    """
    words = words[: -(-len(noise) // 4)].random_(-(2**63), None, generator=generator)
    return noise.copy_(words.view(torch.int16)[: len(noise)]).bitwise_and_(65535)


def sum_gradients_exactly(parameters: Iterable[nn.Parameter]) -> None:
    """Let `.grad` be fp32 whatever the weights are, so that a step does not depend on how it is cut into
    micro-batches.
    """
    for parameter in parameters:
        parameter.grad_dtype = torch.float32


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) in fp32, of which weights in bf16 keep themselves and their moments
    rounded by chance.

    Gradients are fp32. Weights in fp32 get the plain update. The chances hang on the seed, the number of the
    step and the place of the weight alone: runs can be resumed, and processes that hold the same weights go
    on holding them.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        seed: int,
        piece: int | None = None,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed, self._piece = seed, piece
        # Steps of each weight, next to the tensor that holds them: fetching it from a GPU would be a wait for each.
        self._steps: dict[nn.Parameter, tuple[Tensor, int]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        places = enumerate((group, parameter) for group in self.param_groups for parameter in group["params"])
        scratch: dict[torch.device, _Scratch] = {}
        for place, (group, parameter) in places:
            if parameter.grad is None:
                continue
            state, device = self.state[parameter], parameter.device
            if not state:
                state["step"] = torch.zeros((), device=device)
                state["exp_avg"], state["exp_avg_sq"] = (
                    torch.zeros_like(parameter),
                    torch.zeros_like(parameter),
                )
            tensors = [parameter, state["exp_avg"], state["exp_avg_sq"]]
            if parameter.dtype == torch.float32:
                _update(group, parameter.grad, tensors, state["step"])
                continue
            if device not in scratch:
                scratch[device] = _Scratch.on(
                    device, self._piece or (_PIECE_CUDA if device.type == "cuda" else _PIECE)
                )
            number = self._steps_done(parameter, state["step"])
            self._update_low(group, (number, place), parameter.grad, tensors, state["step"], scratch[device])
            self._steps[parameter] = state["step"], number + 1

    def _steps_done(self, parameter: nn.Parameter, count: Tensor) -> int:
        """What the tensor holds, which is read where it is new: at the first step, and after a state was loaded."""
        known, number = self._steps.get(parameter, (None, 0))
        return number if known is count else int(count)

    def _update_low(
        self,
        group: dict[str, Any],
        place: tuple[int, int],  # number of the step, and of the weight
        gradient: Tensor,
        tensors: list[Tensor],
        count: Tensor,
        scratch: "_Scratch",
    ) -> None:
        entropy = np.random.SeedSequence([self._seed, *place])
        generator = scratch.generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
        for part, *lows in zip(
            *(tensor.view(-1).split(scratch.size) for tensor in (gradient, *tensors)), strict=True
        ):
            exact = scratch.exact[: 3 * len(part)].view(3, -1)
            for one, low in zip(exact, lows, strict=True):
                one.copy_(low)
            _update(group, part, list(exact), count.clone())
            noise = draw_noise(scratch.words, scratch.noise[: 3 * len(part)], generator)
            for one, low in zip(round_by_chance(exact, noise.view(3, -1)), lows, strict=True):
                low.copy_(one)
        count += 1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scratch:
    """Memory for a weight and its two moments, of `size` entries at most."""

    size: int
    exact: Tensor  # [3 size], fp32
    noise: Tensor  # [3 size], int32
    words: Tensor  # [3 size / 4], int64
    generator: torch.Generator  # seeded anew for each weight

    @staticmethod
    def on(device: torch.device, size: int) -> "_Scratch":
        exact, noise = (
            torch.empty(3 * size, dtype=dtype, device=device) for dtype in (torch.float32, torch.int32)
        )
        return _Scratch(
            size=size,
            exact=exact,
            noise=noise,
            words=torch.empty(-(-3 * size // 4), dtype=torch.int64, device=device),
            generator=torch.Generator(device),
        )


def _update(group: dict[str, Any], gradient: Tensor, tensors: list[Tensor], count: Tensor) -> None:
    """One weight and its two moments, in fp32 and in place; counts the step."""
    weight, mean, square = tensors
    adamw(
        [weight],
        [gradient],
        [mean],
        [square],
        [],
        [count],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
