"""The settings that commands share which read data and run a model."""

from dataclasses import dataclass, field
from typing import Literal

from preftune.data.options import DataOptions
from preftune.model.whole_model import LoadOptions

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Where and how a command runs its model, and how it reads data and prints.

    Args:
        seed: of all random draws.
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        json: print JSON.
        rows: how data files become groups of tokens.
        loading: security settings for loading models.
    """

    seed: int = 0
    precision: Precision = "fp32"
    device: str = "auto"
    json: bool = False
    rows: DataOptions = field(default_factory=DataOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)
