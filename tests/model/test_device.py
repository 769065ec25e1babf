"""Devices by name: used, or refused in one sentence."""

import pytest
import torch

from preftune.errors import ConfigError
from preftune.model.device import available, device_note, pick_device


def test_auto_and_cpu():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_note("cpu") == ""


@pytest.mark.parametrize("name", ["mps", "xpu", "cuda", "cuda:99", "tpu", "meta", "vulkan", ""])
def test_a_device_that_is_missing_is_refused(name):
    if name in available():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(
        ConfigError, match=r"is not available; got .*; expected auto, cpu, cuda, mps, xpu"
    ) as told:
        pick_device(name)
    assert "\n" not in str(told.value)
    assert "This machine has: cpu" in str(told.value)
