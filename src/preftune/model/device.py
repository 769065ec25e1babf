"""The device that computes."""

import os

import torch

from preftune.errors import ConfigError

KINDS = ("cpu", "cuda", "mps", "xpu")


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" takes a CUDA GPU if there is one, else the CPU. Another device is used only
    where it is named.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in KINDS:
            raise RuntimeError(f"preftune does not compute on {device.type}")
        if device.type not in available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no {device.type} device")
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # before anything else of this process lies on the first GPU
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {name} is not available",
            got=" ".join(str(error).split())[:100].rstrip("."),
            expected=f"auto, {', '.join(KINDS)}, or cuda:N",
            do=f"This machine has: {', '.join(available())}",
        ) from error
    return device


def available() -> list[str]:
    """The kinds of devices of this machine."""
    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    return ["cpu", *(kind for kind, there in found.items() if there)]


def device_note(name: str) -> str:
    """What a user should know of the device that was picked; "" if nothing."""
    device = pick_device(name)
    if device.type == "mps" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1":
        return "device: PYTORCH_ENABLE_MPS_FALLBACK is set: PyTorch computes on the CPU what MPS lacks"
    others = [kind for kind in available() if kind != "cpu"]
    if name == "auto" and device.type == "cpu" and others:
        return f"device: cpu; this machine has {others[0]} too (--device {others[0]})"
    return ""
