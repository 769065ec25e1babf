"""Defaults by device, from descriptions of devices that are not here."""

import json
import os

import pytest
import torch

from preftune.cli.settings import parse_settings
from preftune.model.device_defaults import (
    DeviceFacts,
    ModelSize,
    Training,
    device_defaults,
    device_line,
    expand_segments,
    facts_of,
    fitting_tokens,
    size_of,
)
from preftune.model.layout import LayoutOptions
from preftune.train.device_settings import parse_training
from preftune.train.options import TrainConfig
from tests.models import CONFIGS, tiny_model

GIB = 2**30
H200 = DeviceFacts(kind="cuda", name="NVIDIA H200", memory_bytes=139 * GIB, has_bf16=True)
SMALL = DeviceFacts(kind="cuda", name="NVIDIA A10", memory_bytes=22 * GIB, has_bf16=True)
OLD = DeviceFacts(kind="cuda", name="Tesla T4", memory_bytes=15 * GIB, has_bf16=False)
QWEN = ModelSize(parameters=1_543_000_000, layers=28, hidden=1536, inner=8960)
LLAMA = ModelSize(parameters=8_030_000_000, layers=32, hidden=4096, inner=14336)
ONE_PAIR = ["--data", "pairs.jsonl", "--output", "run"]


@pytest.mark.parametrize("kind", ["cpu", "mps", "xpu"])
def test_other_devices_keep_the_defaults_of_the_settings(kind):
    facts = DeviceFacts(kind=kind)
    assert device_defaults(facts, QWEN, Training(draws=True)) == {}
    assert device_line(facts, {"precision": "fp32"}) == ""


def test_a_large_gpu_and_a_model_of_one_and_a_half_billion_weights():
    assert device_defaults(H200, QWEN, Training()) == {
        "precision": "bf16",
        "layout.micro_batch_tokens": 16384,
    }
    drawing = device_defaults(H200, QWEN, Training(draws=True, live_reference=True))
    assert drawing["sampling.sample_batch"] == 1024


def test_tokens_by_hand():
    """A weight takes 18 bytes, a position 10 * (2 * (12 * 1000 + 4 * 4000) + 24 * 1000) = 800,000."""
    size = ModelSize(parameters=1_000_000_000, layers=10, hidden=1000, inner=4000)
    memory = int((18e9 + 4 * GIB + 0.8e6 * 5000) / 0.8) + 1  # 5000 positions fit
    gpu = DeviceFacts(kind="cuda", memory_bytes=memory, has_bf16=True)
    assert fitting_tokens(gpu, size, Training(), low=True) == 4096
    assert fitting_tokens(gpu, size, Training(live_reference=True), low=True) == 0  # 4 GB more
    assert fitting_tokens(gpu, size, Training(low_weights=True), low=True) == 8192  # 8 GB less: 15,000
    assert fitting_tokens(gpu, size, Training(lora=True, live_reference=True), low=True) == 16384
    assert fitting_tokens(gpu, size, Training(), low=False) == 4096  # 7 GB in 1.36 MB: 4,400


def test_what_does_not_fit_is_computed_twice():
    found = device_defaults(SMALL, QWEN, Training())
    assert found["layout.micro_batch_tokens"] == 1024 and found["gradient_checkpointing"] is True
    assert "gradient_checkpointing" not in device_defaults(SMALL, QWEN, Training(dropout=True))
    assert device_defaults(H200, LLAMA, Training())["gradient_checkpointing"] is True
    assert device_defaults(H200, LLAMA, Training(lora=True)) == {
        "precision": "bf16",
        "layout.micro_batch_tokens": 8192,
    }


def test_a_gpu_without_bf16_keeps_fp32():
    assert "precision" not in device_defaults(OLD, QWEN, Training(lora=True))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("gpt2", "gemma2", "gemma3")])
def test_sizes_are_those_of_the_model(name):
    """Norms and biases are left out."""
    model = tiny_model(name)
    size = size_of(json.loads(model.config.to_json_string(use_diff=False)))
    if size is None:
        pytest.skip("it does not name its sizes as others do")
    assert size.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.06)


def test_a_configuration_without_sizes_is_no_error():
    assert size_of({"model_type": "mamba"}) is None
    assert device_defaults(H200, None, Training())["layout.micro_batch_tokens"] == 4096


def test_what_is_given_wins(tmp_path):
    """By a flag, and by a file of settings."""
    chosen = parse_training(ONE_PAIR, "preftune train", H200)
    assert (chosen.precision, chosen.layout.micro_batch_tokens) == ("bf16", 16384)
    (tmp_path / "settings.yaml").write_text("layout:\n  micro_batch_tokens: 500\n")
    words = [*ONE_PAIR, "--precision", "fp32", "--config", str(tmp_path / "settings.yaml")]
    given = parse_training(words, "preftune train", H200)
    assert (given.precision, given.layout.micro_batch_tokens) == ("fp32", 500)
    assert given.sampling.sample_batch == 128  # nothing is drawn offline


def test_on_a_cpu_nothing_changes():
    facts = facts_of(torch.device("cpu"))
    assert parse_training(ONE_PAIR, "preftune train", facts) == parse_settings(TrainConfig, ONE_PAIR, "")
    assert TrainConfig.precision == "fp32" and LayoutOptions.micro_batch_tokens == 384


def test_the_line_names_the_device_and_the_settings():
    line = device_line(H200, {"precision": "bf16", "gradient_checkpointing": False})
    assert line == (
        "device: NVIDIA H200, 139 GiB: precision bf16, gradient_checkpointing false "
        "(defaults follow the device; flags override them)"
    )


def test_memory_grows_in_segments_unless_the_user_says_how(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    expand_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    expand_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"
