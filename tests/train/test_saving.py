"""final/ is in the type asked for, by default that of the model's files, and its configuration says so."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from preftune.commands.train_reward_model import RewardModelConfig
from preftune.model.adapters import LoraOptions
from preftune.train.loop import train
from preftune.train.optim import OptimOptions
from preftune.train.saving import in_dtype
from tests.folders import tiny_config, weights_of

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture
def low_folder(tiny_folder, tmp_path):
    """The tiny model as it is published: in bf16."""
    folder = tmp_path / "low"
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(folder)
    for path in tiny_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    for path in tiny_folder.glob("*.jinja"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("base", "asked", "expected"),
    [("bf16", "auto", "bf16"), ("fp32", "auto", "fp32"), ("bf16", "fp32", "fp32"), ("fp32", "fp16", "fp16")],
)
def test_the_type_of_the_weights(base, asked, expected, low_folder, tiny_folder, pairs_file, tmp_path):
    model = low_folder if base == "bf16" else tiny_folder
    config = tiny_config(model, pairs_file, tmp_path / "run", save_dtype=asked, max_steps=1)
    final = train(config, quiet=True).final
    assert {weight.dtype for weight in weights_of(final).values()} == {TYPES[expected]}
    assert weights_of(final).keys() == weights_of(model).keys()
    named = json.loads((final / "config.json").read_text())["dtype"]
    assert getattr(torch, named) == AutoModelForCausalLM.from_pretrained(final).dtype == TYPES[expected]
    size = sum(path.stat().st_size for path in final.glob("*.safetensors"))
    whole = sum(4 * weight.numel() for weight in weights_of(final).values())
    assert size < 1.1 * whole * (1 if expected == "fp32" else 0.5)


@pytest.mark.parametrize(("asked", "expected"), [("auto", "fp32"), ("bf16", "bf16")])
def test_the_type_of_an_adapter(asked, expected, low_folder, pairs_file, tmp_path):
    config = tiny_config(
        low_folder, pairs_file, tmp_path / "run", save_dtype=asked, max_steps=1, lora=LoraOptions(rank=2)
    )
    weights = load_file(train(config, quiet=True).final / "adapter_model.safetensors")
    assert weights and {weight.dtype for weight in weights.values()} == {TYPES[expected]}


def test_the_type_of_a_reward_model(low_folder, pairs_file, tmp_path):
    settings = RewardModelConfig(
        data=pairs_file,
        output=str(tmp_path / "run"),
        model=str(low_folder),
        max_steps=1,
        optim=OptimOptions(learning_rate=1e-3),
    )
    final = train(settings.run_settings(), quiet=True).final
    assert AutoModelForSequenceClassification.from_pretrained(final).dtype == torch.bfloat16


def test_tied_weights_stay_tied_and_nothing_becomes_infinite():
    one = torch.ones(2, 3)
    low = in_dtype({"a": one, "b": one.detach(), "n": torch.arange(2)}, torch.bfloat16)
    assert low["a"] is low["b"] and low["a"].dtype == torch.bfloat16 and low["n"].dtype == torch.int64
    large = {"a": one, "b": torch.full((1,), 1e6)}
    assert {weight.dtype for weight in in_dtype(large, torch.float16).values()} == {torch.float32}
