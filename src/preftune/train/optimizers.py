"""Optimizers by name, each from the library that maintains it, and what is special about their state."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ConfigError
from preftune.train.optim import CRITIC_LEARNING_RATE, VALUE_LEARNING_RATE, OptimOptions
from preftune.train.rounding import RoundedAdamW

MOMENT_BYTES = {"adamw": 8.0, "adamw-8bit": 2.1, "adafactor": 0.1, "muon": 4.0, "schedule-free": 8.0}
"""Bytes of state for a weight in fp32."""

GROUP_STATE = ("k", "weight_sum", "lr_max")
"""Numbers that schedule-free keeps for all weights together, and that a resumed run needs."""


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    options: OptimOptions,
    seed: int = 0,
    matrices: frozenset[str] = frozenset(),
    critic: frozenset[str] = frozenset(),
) -> torch.optim.Optimizer:
    """The optimizer that the options name. `seed` is of stochastic rounding; `matrices` are the names of the
    weights that Muon updates, the others get AdamW; `critic` are those of a critic, which AdamW gives a learning
    rate of their own, in proportion to that of the other weights.
    """
    weights, betas = list(parameters.values()), (options.adam_beta1, options.adam_beta2)
    common = {"lr": options.peak, "weight_decay": options.weight_decay}
    adam = {**common, "betas": betas, "eps": options.adam_epsilon}
    groups: Any = weights
    if critic and options.name == "adamw":
        groups = [
            {"params": [weight for name, weight in parameters.items() if name not in critic]},
            {
                "params": [parameters[name] for name in sorted(critic)],
                "lr_scale": _critic_scale(options, len(critic) == 1),
            },
        ]
    if options.weights == "bf16":
        return RoundedAdamW(groups, **adam, seed=seed)
    if options.name == "adamw-8bit":
        return _library("torchao.optim", "torchao", options.name).AdamW8bit(weights, **adam)
    if options.name == "schedule-free":
        module = _library("schedulefree", "schedulefree", options.name)
        optimizer = module.AdamWScheduleFree(weights, **adam)
        optimizer.train()
        return optimizer
    if options.name == "adafactor":  # as Hugging Face's Trainer has it: the learning rate is the caller's
        from transformers.optimization import Adafactor

        return Adafactor(weights, **common, scale_parameter=False, relative_step=False, warmup_init=False)
    if options.name == "muon":
        hidden = [weight for name, weight in parameters.items() if name in matrices]
        others = [weight for name, weight in parameters.items() if name not in matrices]
        return _MuonAndAdamW(hidden, others, common, adam)
    return torch.optim.AdamW(groups, **adam, fused=True)


def _critic_scale(options: OptimOptions, is_head: bool) -> float:
    """Learning rate of a critic, a head or a whole network, over that of the other weights."""
    usual = VALUE_LEARNING_RATE if is_head else CRITIC_LEARNING_RATE
    peak = usual if options.value_learning_rate is None else options.value_learning_rate
    return peak / options.peak if options.peak else 0.0


def check_optimizer(options: OptimOptions) -> None:
    """Whether the library of the optimizer is there: checked before data and model are read."""
    for name, module, package in (
        ("adamw-8bit", "torchao.optim", "torchao"),
        ("schedule-free", "schedulefree", "schedulefree"),
    ):
        if options.name == name:
            _library(module, package, name)


def _library(module: str, package: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"optim.name {name} needs the package {package}",
            got=str(error),
            do=f"Install it with: pip install {package}",
        ) from error


class _MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the model, AdamW for embeddings, heads, norms and biases.

    Muon's steps are scaled to the size of AdamW's, so that one learning rate serves both.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        common: dict[str, Any],
        adam: dict[str, Any],
    ):
        parts = [torch.optim.Muon(matrices, **common, adjust_lr_fn="match_rms_adamw")] if matrices else []
        self._parts = [*parts, *([torch.optim.AdamW(others, **adam, fused=True)] if others else [])]
        super().__init__([*matrices, *others], {})
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()


def hidden_matrices(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Names of the trained matrices inside the model: neither embeddings nor heads."""
    outside = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore
    if head is not None:
        outside.add(id(head.weight))
    return frozenset(
        name
        for name, weight in parameters.items()
        if weight.ndim == 2 and id(weight) not in outside and not name.startswith(("value_head", "critic"))
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # of a compiled step, which would be compiled again for a number
            group["lr"].fill_(rate * group.get("lr_scale", 1.0))
        else:
            group["lr"] = rate * group.get("lr_scale", 1.0)


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within, the weights are those that the optimizer would have used: schedule-free evaluates an average of
    the weights that it trains. Afterwards they are bit for bit as before.
    """
    if not any("train_mode" in group for group in optimizer.param_groups):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.detach().clone() for weight in weights]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


# --- the state, as a checkpoint holds it ---


def state_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that the optimizer knows, under "NAME OF THE WEIGHT|ENTRY". A number's key ends in "#", that of a
    part of a quantized tensor in "@PART"; what belongs to all weights is under "|ENTRY#".
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            key = f"{name}|{entry}"
            if not isinstance(value, Tensor):
                tensors |= _number(key, value)
            elif _is_quantized(value):
                parts, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
                tensors |= {f"{key}@{part}": getattr(value, part).detach() for part in parts}
            else:
                tensors[key] = value.detach()
    for entry in GROUP_STATE:
        if entry in optimizer.param_groups[0]:
            tensors |= _number(f"|{entry}", optimizer.param_groups[0][entry])
    return tensors


def _number(key: str, value: float | int | None) -> dict[str, Tensor]:
    if value is None:
        return {}
    kind = torch.int64 if isinstance(value, int) else torch.float64
    return {f"{key}#": torch.tensor(value, dtype=kind)}


def _is_quantized(value: Tensor) -> bool:
    return type(value).__name__ == "OptimState8bit"


def put_special(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put numbers and quantized tensors back; returns the plain tensors, which are left."""
    plain: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        if not name:
            for group in optimizer.param_groups:
                group[entry.removesuffix("#")] = value.item()
        elif entry.endswith("#"):
            optimizer.state[parameters[name]][entry.removesuffix("#")] = value.item()
        elif "@" in entry:
            parts.setdefault(key.rpartition("@")[0], {})[entry.partition("@")[2]] = value
        else:
            plain[key] = value
    for key, found in parts.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        kind = importlib.import_module("torchao.optim.subclass_8bit").OptimState8bit
        found = {part: value.to(parameter.device) for part, value in found.items()}
        signed = entry == "exp_avg"
        optimizer.state[parameter][entry] = kind.__tensor_unflatten__(found, [signed, parameter.dtype])
    return plain
