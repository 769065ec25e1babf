"""Settings of a training run in which what is not given follows the device."""

import json
from collections.abc import Sequence
from pathlib import Path

from preftune.cli.settings import parse_settings
from preftune.errors import PreftuneError
from preftune.model.device import pick_device
from preftune.model.device_defaults import (
    DeviceFacts,
    ModelSize,
    Training,
    device_defaults,
    facts_of,
    size_of,
)
from preftune.model.load import resolve_model
from preftune.train.options import TrainConfig


def parse_training(words: Sequence[str], prog: str, facts: DeviceFacts | None = None) -> TrainConfig:
    """The settings that flags and files give; of those that they do not give, on a GPU the ones that suit it.
    `facts` describes another device than the one of the settings.
    """
    settings = parse_settings(TrainConfig, words, prog)
    facts = facts or facts_of(pick_device(settings.device))
    training = Training(
        lora=settings.lora.rank > 0,
        low_weights=settings.optim.weights == "bf16",
        draws=settings.draws and not settings.server.url,
        live_reference=settings.draws or settings.reference.mode == "live",
        dropout=settings.lora.dropout > 0,
    )
    better = device_defaults(facts, _size(settings.model), training)
    if not better:
        return settings
    flags = [f"--{name}={json.dumps(value).strip(chr(34))}" for name, value in better.items()]
    return parse_settings(TrainConfig, [*flags, *words], prog)  # what comes later wins


def _size(model: str) -> ModelSize | None:
    """Sizes of a model whose configuration is on this disk."""
    try:
        path = Path(resolve_model(model)).expanduser() / "config.json"
        return size_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, PreftuneError):
        return None
