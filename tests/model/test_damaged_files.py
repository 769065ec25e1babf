"""Model folders whose files hold nonsense: refused in one sentence that says what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preftune.errors import ModelError
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.load import load_model, load_tokenizer, resolve_model
from preftune.model.whole_model import LoadOptions
from preftune.sampling.engine import choose_engine
from tests.refusals import refusal


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def load(folder: Path) -> None:
    source = resolve_model(str(folder))
    load_tokenizer(source, LoadOptions())
    choose_engine(load_model(source, LoadOptions()))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_hidden_layers", 10**7, r"do not fit its configuration; got num_hidden_layers 10,000,000"),
        ("hidden_size", 10**9, r"do not fit its configuration; got hidden_size 1,000,000,000"),
        ("vocab_size", 10**9, r"do not fit its configuration; got vocab_size 1,000,000,000"),
        ("num_attention_heads", 0, "ZeroDivisionError"),
        ("model_type", ["llama"], "unhashable type"),
        ("quantization_config", [1], "Cannot load"),
        ("dtype", "float7", "no attribute 'float7'"),
    ],
)
def test_a_configuration_of_nonsense_is_refused(name, value, message, folder):
    change(folder / "config.json", **{name: value})
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[]", "must be a mapping"),
        ("config.json", "[" * 100_000, "Cannot load"),
        ("tokenizer.json", "[]", "Cannot load the tokenizer"),
        ("tokenizer.json", "{}", "Cannot load the tokenizer"),
        ("tokenizer_config.json", "[]", "Cannot load the tokenizer"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "model_max_length 'x'; expected a number"),
        ("tokenizer_config.json", '{"eos_token": 5}', "Special token eos_token"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 5}}', "outside its folder; got 5"),
        ("model.safetensors.index.json", "[" * 100_000, "index .* is damaged"),
    ],
)
def test_a_file_of_nonsense_is_refused(file, content, message, folder):
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_weights_that_are_not_finite_are_named(folder):
    file = folder / "model.safetensors"
    save_file({name: weight * torch.nan for name, weight in load_file(file).items()}, file)
    assert "logits that are not finite" in refusal(load, folder)


def test_token_ids_without_rows_in_the_embedding_are_refused(folder):
    """The tokenizer has fewer tokens than the embedding has rows, but one has a higher id."""
    from preftune.data.vocabulary import missing_rows

    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    assert missing_rows(load_tokenizer(str(folder), LoadOptions())) is None
    known = vocabulary["model"]["vocab"]
    known[max(known, key=known.__getitem__)] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert missing_rows(load_tokenizer(str(folder), LoadOptions())) == rows


def test_a_folder_without_safetensors_advises_what_it_holds(folder):
    (folder / "model.safetensors").unlink()
    assert "allow_pickle" not in refusal(load, folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    assert "--allow_pickle" in refusal(load, folder)
    (folder / "small.gguf").write_bytes(b"GGUF")
    assert f"Name the GGUF file as the model: {folder / 'small.gguf'}" in refusal(load, folder)


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """A LoRA adapter of the tiny model, on disk."""
    model = load_model(str(tiny_folder), LoadOptions())
    inject_lora(model, LoraOptions(rank=2)).save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tiny_folder))
    load(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rank_pattern", [1], r"rank_pattern \[1\]"),
        ("target_parameters", 5, "target_parameters 5"),
        ("r", "x", "Cannot load the adapter"),
        ("peft_type", ["LORA"], "Cannot load the adapter"),
        ("lora_alpha", float("nan"), "logits that are not finite"),
    ],
)
def test_an_adapter_configuration_of_nonsense_is_refused(name, value, message, adapter):
    change(adapter / "adapter_config.json", **{name: value})
    with pytest.raises(ModelError, match=message):
        load(adapter)


def test_an_adapter_without_half_of_its_weights_is_refused(adapter):
    """peft loads it with a warning."""
    file = adapter / "adapter_model.safetensors"
    save_file(dict(list(load_file(file).items())[::2]), file)
    assert "Found missing adapter keys" in refusal(load, adapter)
