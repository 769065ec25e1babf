"""The command `env`: versions and hardware, for a bug report."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from preftune import __version__
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.model.device import available

PACKAGES = [
    "torch",
    "transformers",
    "tokenizers",
    "fastokens",
    "safetensors",
    "peft",
    "datasets",
    "huggingface_hub",
    "numpy",
    "jsonargparse",
    "httpx2",
    "trl",
    "vllm",
    "bitsandbytes",
    "torchao",
    "schedulefree",
]


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Versions and hardware, for a bug report. Nothing is sent anywhere.

    Args:
        json: print JSON.
    """

    json: bool = False


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(EnvConfig, arguments, "preftune env")
    facts = environment_facts()
    if settings.json:
        print_json(facts)
    else:
        for name, value in facts.items():
            print(f"{name:18} {value}")
    return 0


def environment_facts() -> dict[str, str]:
    """What a maintainer requests first; no path and no variable of the user."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "preftune": __version__,
        "python": platform.python_version(),
        "environment": "virtual" if sys.prefix != sys.base_prefix else "of the system",
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {cores} cores",
        "torch threads": str(torch.get_num_threads()),
        "devices": ", ".join(_devices()),
    }
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return available()[::-1]
