"""Adapters over quantized weights: the function that trains is the function that is saved, merged and exported."""

import json
import warnings
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from preftune.cli.main import main
from preftune.errors import ConfigError, ModelError
from preftune.model import quantize
from preftune.model.adapter_saving import save_adapter
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.layout import LayoutOptions
from preftune.model.load import load_model
from preftune.model.policy import Policy
from preftune.model.proof import choose_layout
from preftune.model.quantize import dequantized, is_quantized_weight, quantization_of
from preftune.model.shard import ShardOptions
from preftune.model.whole_model import LoadOptions
from preftune.train.checks import check_quantization
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.folders import PAIRS, metric_rows, write_rows

IDS = torch.arange(5, 25)[None]
PACKAGES = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes", "bnb-int8": "bitsandbytes"}
EXACT = ("int8", "int4", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / "model"
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def quantized(folder, name: str):
    pytest.importorskip(PACKAGES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about kernels that this machine lacks
        return load_model(str(folder), LoadOptions(), torch.float32, name)


@pytest.fixture(autouse=True)
def plain_cpu_kernels(monkeypatch):
    """bitsandbytes repacks weights for bf16 instructions at the first forward on some CPUs."""
    if find_spec("bitsandbytes"):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def shaken(model) -> None:
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.2)


def int8_by_hand(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric, one scale a row."""
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return (weight / scale).round().clamp(-128, 127) * scale


def test_int8_is_one_scale_a_row(folder):
    model = quantized(folder, "int8")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    name = "model.layers.1.mlp.down_proj"
    expected = int8_by_hand(plain.get_submodule(name).weight.detach())
    assert is_quantized_weight(model.get_submodule(name))
    assert not is_quantized_weight(model.lm_head)
    found = dequantized(model, torch.float32).get_submodule(name).weight
    largest = float(expected.abs().max())
    torch.testing.assert_close(
        found, expected, atol=largest / 127, rtol=0
    )  # one step: the library's zero point
    assert float((found - expected).abs().mean()) < largest / 500


@pytest.mark.parametrize("name", EXACT)
def test_plain_weights_again_are_the_same_function(name, folder):
    model, full = quantized(folder, name), AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(model)
    assert float((expected - logits(full)).abs().max()) > 1e-3
    sharing, _ = choose_layout(model, LayoutOptions(), "fp32")
    assert sharing == "flat"
    plain = dequantized(model, torch.float32)
    assert not any(is_quantized_weight(module) for module in plain.modules() if hasattr(module, "weight"))
    torch.testing.assert_close(logits(plain), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EXACT)
def test_an_adapter_is_merged_into_the_weights_that_it_trained_on(name, folder, tmp_path):
    model = quantized(folder, name)
    peft_model = inject_lora(model, LoraOptions(rank=3, quantization=name))
    peft_model.eval()
    policy = Policy(
        model=model,
        precision="fp32",
        sharing="flat",
        sharing_reason="",
        peft_model=peft_model,
        quantization=name,
    )
    shaken(peft_model)
    wanted = logits(model)
    save_adapter(policy, tmp_path / "final")
    assert quantization_of(str(tmp_path / "final")) == name
    assert f"quantized ({name}" in (tmp_path / "final" / "README.md").read_text()
    merged = load_model(str(tmp_path / "final"), LoadOptions())
    torch.testing.assert_close(logits(merged), wanted, atol=2e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), wanted, atol=2e-4, rtol=0)
    (
        tmp_path / "final" / quantize.NOTE
    ).unlink()  # over the weights before quantization it is another function
    other = logits(load_model(str(tmp_path / "final"), LoadOptions()))
    assert float((other - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_it_trains_from_the_command_line(name, folder, tmp_path, capsys):
    pytest.importorskip(PACKAGES[name])
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    words = f"--data {data} --model {folder} --output {tmp_path / 'run'} --objective dpo --batch_size 4 --max_steps 6"
    words += f" --learning_rate 1e-2 --lora.rank 4 --lora.quantization {name} --eval_fraction 0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", *words.split()]) == 0, capsys.readouterr().err
        losses = [row["loss"] for row in metric_rows(tmp_path / "run")]
        assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < 0.6
        command = ["export", str(tmp_path / "run"), "--to", "merged", "--output", str(tmp_path / "out")]
        assert main(command) == 0, capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
@pytest.mark.parametrize("name", ["nf4", "bnb-int8"])
def test_bitsandbytes_trains_on_a_gpu(name, folder, tmp_path, capsys):
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    words = f"--data {data} --model {folder} --output {tmp_path / 'run'} --objective sft --lora.rank 4"
    assert main(["train", *words.split(), "--lora.quantization", name]) == 2
    assert f"lora.quantization {name} trains on a GPU only; got device cpu" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        with pytest.raises(ConfigError, match=rf"{name} needs the package {package}.*preftune\[{package}\]"):
            load_model(str(folder), LoadOptions(), torch.float32, name)


def test_what_does_not_go_together(folder, tmp_path):
    with pytest.raises(ConfigError, match="Adapters over quantized weights are plain LoRA"):
        LoraOptions(rank=2, quantization="int8", dora=True)
    with pytest.raises(ConfigError, match=r"lora\.quantization has no effect without adapters"):
        LoraOptions(quantization="int8")
    with pytest.raises(ConfigError, match="model in shards"):
        check_quantization(LoraOptions(rank=2, quantization="int8"), ShardOptions(mode="full"))
    (tmp_path / quantize.NOTE).write_text('{"quantization": "int3"}')
    with pytest.raises(ModelError, match="names no quantization; got int3"):
        quantization_of(str(tmp_path))
