"""Frozen weights in 8 or 4 bits under adapters, through torchao and bitsandbytes; and back to full precision."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.errors import ConfigError, ModelError

Quantization = Literal["none", "int8", "int4", "bnb-int8", "nf4"]
NOTE = "base_quantization.json"
"""Next to an adapter: how the weights were quantized under which it trained."""
_GROUP = 32  # weights of a row that share a scale in int4


@dataclass(frozen=True, kw_only=True)
class _Library:
    package: str
    extra: str


_TORCHAO = _Library(package="torchao", extra="torchao")
_BNB = _Library(package="bitsandbytes", extra="bitsandbytes")
_LIBRARIES = {"int8": _TORCHAO, "int4": _TORCHAO, "bnb-int8": _BNB, "nf4": _BNB}


def check_installed(name: str) -> None:
    """An error if the package of this quantization is not installed."""
    library = _LIBRARIES[name]
    if find_spec(library.package) is None:
        raise ConfigError(
            f"lora.quantization {name} needs the package {library.package}",
            got="not installed",
            do=f"Install it: pip install 'preftune[{library.extra}]'",
        )


def check_device(name: str, device: torch.device) -> None:
    """bitsandbytes computes on a CPU in bf16 and in a layout of weights that has no backward."""
    if name in _LIBRARIES and _LIBRARIES[name] is _BNB and device.type == "cpu":
        raise ConfigError(
            f"lora.quantization {name} trains on a GPU only",
            got=f"device {device}",
            expected="a CUDA device",
            do="Use int8 or int4, which torchao computes on a CPU too",
        )


def library_settings(name: str, dtype: torch.dtype) -> Any:
    """The quantization_config of transformers."""
    check_installed(name)
    if name in ("nf4", "bnb-int8"):
        from transformers import BitsAndBytesConfig

        if name == "bnb-int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    with _quiet_torchao():
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Int8WeightOnlyConfig,
            IntxWeightOnlyConfig,
            PerGroup,
        )
        from transformers import TorchAoConfig

        if name == "int8":
            return TorchAoConfig(Int8WeightOnlyConfig())
        four = torch.int4  # pyright: ignore[reportAttributeAccessIssue]
        return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=four, granularity=PerGroup(_GROUP)))


@contextmanager
def _quiet_torchao() -> Iterator[None]:
    """Silence notices at its import about kernels for other machines."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def is_quantized(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "is_quantized", False))


def is_quantized_weight(module: nn.Module) -> bool:
    """Whether a linear layer holds its weight in another form than a plain matrix."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and type(weight) is not nn.Parameter


def tensor_parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors of which a quantized weight is made; the tensor itself if it is plain."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [part for name in names for part in tensor_parts(getattr(tensor, name))]


@torch.no_grad()
def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with plain weights, each the number that its quantized form stands for; in place."""
    if not is_quantized(model):
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and is_quantized_weight(module):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _plain_linear(module, dtype))
    for holder in (model.config, model.config.get_text_config()):
        if hasattr(holder, "quantization_config"):
            delattr(holder, "quantization_config")
    vars(model)["is_quantized"] = False
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        if name in vars(model):
            delattr(model, name)
    return model.to(dtype).requires_grad_(True)  # type: ignore[arg-type]


def _plain_linear(module: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    weight: Any = module.weight
    if hasattr(weight, "quant_state") and weight.quant_state is not None:
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

        plain = dequantize_4bit(weight.data, weight.quant_state)
    elif getattr(weight, "SCB", None) is not None:
        plain = weight.data.float() * (weight.SCB.float() / 127.0)[:, None]
    elif hasattr(weight, "dequantize"):
        plain = weight.dequantize()
    else:
        raise ModelError(
            "The quantized weights of this model cannot be read back",
            got=type(weight).__name__,
            expected="weights of torchao or bitsandbytes",
        )
    made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, dtype=dtype)
    made.weight.copy_(plain)
    if module.bias is not None:
        made.bias.copy_(module.bias)
    return made


def quantization_of(adapter: str) -> str | None:
    """How the base was quantized under which an adapter trained; None if it was not."""
    path = Path(adapter) / NOTE
    if not path.is_file():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["quantization"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged", got=repr(error), do="Correct it, or train again") from error
    if name not in _LIBRARIES:
        raise ModelError(f"{path} names no quantization", got=str(name), expected=", ".join(_LIBRARIES))
    return name


def note_quantization(folder: Path, name: str) -> None:
    """Write next to an adapter what it needs, for preftune and for readers of its model card."""
    (folder / NOTE).write_text(json.dumps({"quantization": name}) + "\n", encoding="utf-8")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    line = (
        f"The base was quantized ({name}, {_LIBRARIES[name].package}) while this adapter trained. preftune merges "
        "the adapter into the quantized weights; over the unquantized base it gives a slightly different function."
    )
    card.write_text(f"{text.rstrip()}\n\n{line}\n", encoding="utf-8")
