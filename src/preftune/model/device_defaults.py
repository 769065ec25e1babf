"""Default settings of a training run that depend on the device: a function of facts on the device and the model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_GIB = 2**30
_USED = 0.8
"""Share of the memory that the estimate fills: the rest is for fragments, workspaces and what it leaves out."""
_LOGITS = 4 * _GIB
"""Chunks of logits in fp32, of which a few copies are held at once."""
_MOST_TOKENS, _FEW_TOKENS = 16384, 1024
"""More positions at once gain nothing; with fewer than a thousand a GPU waits for its launches."""
_UNKNOWN_TOKENS = 4096  # of a model whose sizes are not on this disk
_SAMPLE_BATCH = 1024
"""Completions drawn at a time: the time of a token hardly depends on their number before that."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """A device as far as defaults depend on it."""

    kind: str  # cpu, cuda, mps or xpu
    name: str = ""
    memory_bytes: int = 0  # in all: what is free now would give another run other defaults
    has_bf16: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a model from its configuration."""

    parameters: int
    layers: int
    hidden: int
    inner: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the model is trained, as far as its memory depends on it."""

    lora: bool = False
    low_weights: bool = False  # weights and moments in bf16
    draws: bool = False  # completions are drawn in this process
    live_reference: bool = False
    dropout: bool = False  # of adapters, which nothing may compute twice


def facts_of(device: torch.device) -> DeviceFacts:
    """The facts of a device of this machine."""
    if device.type != "cuda":
        return DeviceFacts(kind=device.type)
    found = torch.cuda.get_device_properties(device)
    return DeviceFacts(
        kind="cuda", name=found.name, memory_bytes=found.total_memory, has_bf16=found.major >= 8
    )


def size_of(config: Mapping[str, Any]) -> ModelSize | None:
    """Sizes from the content of a config.json, if it names them as most decoders do."""
    config = config.get("text_config", config)
    try:
        hidden, layers, heads = (
            int(config[name]) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
        inner, vocabulary = int(config["intermediate_size"]), int(config["vocab_size"])
    except (KeyError, TypeError, ValueError):
        return None
    size = config.get("head_dim") or hidden // heads
    key_heads = config.get("num_key_value_heads") or heads
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    inner_of_experts = config.get("moe_intermediate_size") or inner
    attention = 2 * hidden * size * (heads + key_heads)
    mlp = 3 * hidden * (inner_of_experts * experts if experts > 1 else inner)
    tables = 1 if config.get("tie_word_embeddings") else 2
    return ModelSize(
        parameters=layers * (attention + mlp) + tables * vocabulary * hidden,
        layers=layers,
        hidden=hidden,
        inner=inner,
    )


def fitting_tokens(facts: DeviceFacts, size: ModelSize | None, training: Training, low: bool) -> int:
    """The largest power of two of positions whose kept activations fit beside weights, gradients and moments;
    0 if none do.

    Bytes of a weight: 16 in fp32 with its gradient and two moments, 2 more for autocast's copy; 10 in bf16;
    under adapters 2, frozen. A position keeps in each layer about 12 vectors of the hidden size and 4 of the
    inner size in bf16, and 6 of the hidden size in fp32 for norms and residuals.
    """
    if size is None:
        return _UNKNOWN_TOKENS
    width = 2 if low else 4
    per_weight = width if training.lora else 10 if training.low_weights else 16 + (2 if low else 0)
    if training.live_reference and not training.lora:  # adapters are switched off instead
        per_weight += width if training.low_weights else 4
    room = _USED * facts.memory_bytes - _LOGITS - per_weight * size.parameters
    kept = size.layers * (width * (12 * size.hidden + 4 * size.inner) + 24 * size.hidden)
    tokens = int(room / kept)
    return min(_MOST_TOKENS, 1 << (tokens.bit_length() - 1)) if tokens > 0 else 0


def device_defaults(facts: DeviceFacts, size: ModelSize | None, training: Training) -> dict[str, Any]:
    """Values of settings by name that replace the defaults on this device. None on a CPU: its defaults are
    those of the settings themselves.
    """
    if facts.kind != "cuda":
        return {}
    tokens = fitting_tokens(facts, size, training, facts.has_bf16)
    found: dict[str, Any] = {"precision": "bf16"} if facts.has_bf16 else {}
    found["layout.micro_batch_tokens"] = max(tokens, _FEW_TOKENS)
    if tokens < _FEW_TOKENS and not training.dropout:
        found["gradient_checkpointing"] = True
    if training.draws:
        found["sampling.sample_batch"] = _SAMPLE_BATCH
    return found


def expand_segments() -> None:
    """Let torch's allocator for GPUs extend its segments, so that rows of ever new sizes do not fragment the
    memory. Without effect where the user has set up the allocator, or after the first allocation on a GPU.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def device_line(facts: DeviceFacts, settings: Mapping[str, Any]) -> str:
    """One line on a GPU and the settings that suit it, whether chosen or given; "" for other devices."""
    if facts.kind != "cuda":
        return ""
    values = ", ".join(f"{name} {_shown(value)}" for name, value in settings.items())
    memory = f"{facts.memory_bytes / _GIB:.0f} GiB"
    return f"device: {facts.name}, {memory}: {values} (defaults follow the device; flags override them)"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
