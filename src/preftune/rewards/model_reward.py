"""What rewards that load models have in common."""

from dataclasses import dataclass
from typing import Literal

from preftune.model.whole_model import LoadOptions
from preftune.rewards.base import BuiltIn


@dataclass(frozen=True, kw_only=True)
class ModelReward(BuiltIn):
    """A reward that a model computes in this process.

    Args:
        device: "auto" takes a GPU if there is one.
        precision: "fp32" or "bf16".
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights from pickle files when there are no safetensors.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def loading(self) -> LoadOptions:
        return LoadOptions(trust_remote_code=self.trust_remote_code, allow_pickle=self.allow_pickle)
