"""Adapters as files: what is read before peft loads them, and two adapters composed into one."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from preftune.errors import ModelError, shown
from preftune.model.weight_files import shapes_in

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PROMPTS = {
    "PROMPT_TUNING": "prompt tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "ADAPTION_PROMPT": "adaption prompt",
    "CPT": "context-aware prompt tuning",
    "CARTRIDGE": "a cartridge",
}
_MOST_RANK = 65536
_SIDES = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""The dimension of a factor that is the rank."""


def is_adapter(source: str) -> bool:
    return (Path(source) / CONFIG).is_file()


def adapter_config(source: str) -> dict[str, Any]:
    """What adapter_config.json states; an error if it is damaged or of a kind that cannot be merged."""
    try:
        config = json.loads((Path(source) / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(type(config).__name__)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(source, f"{CONFIG}: {error!r}") from error
    for name, kind in (("rank_pattern", dict), ("alpha_pattern", dict), ("target_parameters", list)):
        if not isinstance(config.get(name) or kind(), kind):
            raise _damaged(source, f"{CONFIG}: {name} {shown(config[name])}")
    kind = str(config.get("peft_type") or "").upper()
    if kind in _PROMPTS:
        raise ModelError(
            f"The adapter {source} cannot be merged into its base",
            got=f"{_PROMPTS[kind]} ({kind})",
            expected="LoRA, IA3 or another adapter of the weights",
            do="Train a LoRA adapter instead",
        )
    return config


def _damaged(source: str, got: str) -> ModelError:
    return ModelError(f"The adapter {source} is damaged", got=got, expected="a folder that peft saved")


def shapes_of(source: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of an adapter in safetensors; none of one in pickle."""
    path = Path(source) / WEIGHTS
    if not path.is_file():
        return {}
    try:
        return shapes_in(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(source, f"{WEIGHTS}: {str(error).splitlines()[0]}") from error


def check_ranks(source: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The ranks that the configuration states are those of the weights: peft would make room for any rank."""
    named = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    stated = [rank for rank in named if isinstance(rank, int)]
    found = [shape[0] for name, shape in shapes.items() if ".lora_A." in name or "lora_embedding_A" in name]
    most = max(found, default=_MOST_RANK)
    experts = any(config.get("target_parameters") or [])  # their factors hold all experts
    for rank in stated:
        if rank > most or rank < 0 or (found and not experts and rank == 0):
            raise ModelError(
                f"The adapter {source} states a rank that its weights do not have",
                got=f"r {rank}",
                expected=f"at most {most}",
                do=f"Correct {CONFIG}",
            )


def vocabulary_of(shapes: Mapping[str, tuple[int, ...]], modules: set[str]) -> int | None:
    """Rows of the embedding or head that the adapter holds whole, if it does."""
    for name, shape in shapes.items():
        bare = name.removeprefix("base_model.model.")
        for ending in (".weight", ".modules_to_save.weight", ".base_layer.weight"):
            if bare.endswith(ending) and bare.removesuffix(ending) in modules and len(shape) == 2:
                return shape[0]
    return None


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A plain LoRA adapter: the factors of each module, in peft's names, and what scales their product."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    @classmethod
    def read(cls, source: str) -> "Lora":
        with safe_open(Path(source) / WEIGHTS, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(config=adapter_config(source), weights=weights)

    @property
    def is_plain(self) -> bool:
        """Whether the adapter is a sum of products of two factors and nothing else."""
        names = ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices", "lora_bias")
        others = (
            "use_qalora",
            "layer_replication",
            "use_bdlora",
            "fan_in_fan_out",
            "kasa_config",
            "alora_invocation_tokens",
        )
        return (
            str(self.config.get("peft_type")).upper() == "LORA"
            and not any(self.config.get(name) for name in (*names, *others))
            and self.config.get("bias", "none") == "none"
            and all(_factor(name) for name in self.weights)
            and all(weight.ndim == 2 for weight in self.weights.values())
        )

    def modules(self) -> dict[str, dict[str, str]]:
        """Module -> factor (lora_A ...) -> name of the tensor."""
        found: dict[str, dict[str, str]] = {}
        for name in self.weights:
            module, factor = _factor(name) or ("", "")
            found.setdefault(module, {})[factor] = name
        return found

    def scale(self, module: str) -> float:
        bare = module.removeprefix("base_model.model.")
        rank = _of_pattern(self.config.get("rank_pattern"), bare, self.config["r"])
        alpha = _of_pattern(self.config.get("alpha_pattern"), bare, self.config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _factor(name: str) -> tuple[str, str] | None:
    """(module, factor) of a tensor's name."""
    for factor in ("lora_embedding_A", "lora_embedding_B", "lora_A", "lora_B"):
        module, found, _ = name.partition(f".{factor}")
        if found:
            return module, factor
    return None


def _of_pattern(pattern: Any, module: str, default: Any) -> Any:
    for name, value in (pattern or {}).items():
        if module == name or module.endswith(f".{name}"):
            return value
    return default


def composed(adapters: list[Lora]) -> Lora:
    """One adapter that adds what all of these add, over one base; every scale is taken into its factors."""
    last = adapters[-1]
    weights, ranks = dict[str, Tensor](), dict[str, int]()
    for module in sorted({module for adapter in adapters for module in adapter.modules()}):
        parts = [(one, one.modules()[module]) for one in adapters if module in one.modules()]
        for factor in parts[0][1]:
            pieces = []
            for one, names in parts:
                piece = one.weights[names[factor]].float()
                pieces.append(piece * one.scale(module) if factor.endswith("_B") else piece)
            joined = torch.cat(pieces, dim=_SIDES[factor]).contiguous()
            weights[parts[0][1][factor]] = joined
            ranks[module.removeprefix("base_model.model.")] = joined.shape[_SIDES[factor]]
    common = max(ranks.values())
    other = {module: rank for module, rank in ranks.items() if rank != common}
    config = dict(last.config) | {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "use_rslora": False,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
    }
    return Lora(config=config, weights=weights)
