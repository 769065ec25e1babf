"""What is loaded, and what is not unless the user asks for it: no code and no pickle that comes with a model."""

import json
import os
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from preftune.cli.main import main
from preftune.errors import ModelError
from preftune.model.adapters import quiet_peft
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_model, load_tokenizer, resolve_model
from preftune.model.proof import choose_layout
from preftune.model.whole_model import unused_note
from tests.folders import same_bits

ASKED = LoadOptions(allow_pickle=True)
CODE = """
import pathlib
pathlib.Path({canary!r}).touch()
from transformers import {base}
class Strange({base}):
    model_type = "strange"
"""


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def copy(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """A LoRA adapter that does something, as peft saves it."""
    model = load_model(str(tiny_folder), LoadOptions())
    with quiet_peft():
        settings = LoraConfig(
            r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        wrapped = get_peft_model(model, settings)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(source, options=LoadOptions(), load=load_model) -> str:  # noqa: B008
    with pytest.raises(ModelError) as caught:
        load(str(source), options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_model_code_does_not_run(copy, canary, capsys, pairs_file, tmp_path):
    (copy / "strange.py").write_text(CODE.format(canary=str(canary), base="PretrainedConfig"))
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "strange.Strange")
    edit(copy / "config.json", model_type="strange", auto_map=classes)
    assert "--trust_remote_code true" in refused(copy)
    words = ["train", "--model", str(copy), "--data", pairs_file, "--output", str(tmp_path / "run"), "--json"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert (
        "carries Python code. Set --trust_remote_code true if you trust its authors." in told
        and told.count("\n") == 1
    )
    assert not canary.exists() and not (tmp_path / "run").exists()


def test_tokenizer_code_does_not_run(copy, canary):
    (copy / "strange.py").write_text(CODE.format(canary=str(canary), base="PreTrainedTokenizerFast"))
    classes = {"AutoTokenizer": ["strange.Strange", "strange.Strange"]}
    edit(copy / "tokenizer_config.json", tokenizer_class="Strange", auto_map=classes)
    told = refused(copy, load=load_tokenizer)
    assert "--trust_remote_code true" in told
    assert not canary.exists()


def test_known_architectures_ignore_the_code_beside_them(copy, canary):
    """A model_type that transformers knows is loaded by transformers' own class."""
    (copy / "strange.py").write_text(CODE.format(canary=str(canary), base="PretrainedConfig"))
    edit(copy / "config.json", auto_map={"AutoConfig": "strange.Strange"})
    assert type(load_model(str(copy), LoadOptions())).__name__ == "LlamaForCausalLM"
    assert not canary.exists()


def test_pickled_weights_want_the_flag(copy, tiny_folder):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "--allow_pickle true" in refused(copy)
    assert same_bits(
        load_model(str(copy), ASKED).state_dict(), load_model(str(tiny_folder), LoadOptions()).state_dict()
    )


@pytest.mark.parametrize("options", [LoadOptions(), ASKED], ids=["without the flag", "with the flag"])
def test_a_malicious_pickle_never_runs(options, copy, canary):
    with open(copy / "pytorch_model.bin", "wb") as file:
        pickle.dump(Bomb(canary), file, protocol=2)
    (copy / "model.safetensors").unlink()
    refused(copy, options)
    assert not canary.exists()


def test_safetensors_win_over_a_pickle_beside_them(copy, canary):
    with open(copy / "pytorch_model.bin", "wb") as file:
        pickle.dump(Bomb(canary), file, protocol=2)
    for options in (LoadOptions(), ASKED):
        load_model(str(copy), options)
    assert not canary.exists()


def test_pickled_adapters_want_the_flag(adapter, canary):
    wanted = load_model(str(adapter), LoadOptions()).state_dict()
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert "--allow_pickle true" in refused(adapter)
    assert same_bits(load_model(str(adapter), ASKED).state_dict(), wanted)
    with open(adapter / "adapter_model.bin", "wb") as file:
        pickle.dump(Bomb(canary), file, protocol=2)
    refused(adapter)
    refused(adapter, ASKED)
    assert not canary.exists()


@pytest.mark.parametrize(
    "damage", ["no base", "itself", "no JSON", "base gone", "weights cut", "another base"]
)
def test_damaged_adapters_are_told(damage, adapter, tmp_path):
    config = adapter / "adapter_config.json"
    if damage == "no JSON":
        config.write_text("{")
    elif damage == "weights cut":
        os.truncate(adapter / "adapter_model.safetensors", 50)
    elif damage == "another base":
        base = shutil.copytree(
            load_model(str(adapter), LoadOptions()).config._name_or_path, tmp_path / "wide"
        )
        edit(base / "config.json", hidden_size=64)
        edit(config, base_model_name_or_path=str(base))
    else:
        name = {"no base": None, "itself": str(adapter), "base gone": str(tmp_path / "gone")}[damage]
        edit(config, base_model_name_or_path=name)
    refused(adapter)


@pytest.mark.parametrize(
    "damage", ["weights cut", "weights gone", "config no JSON", "config gone", "tensor gone", "unknown kind"]
)
def test_damaged_models_are_told(damage, copy, tmp_path):
    if damage == "weights cut":
        os.truncate(copy / "model.safetensors", 500)
    elif damage == "weights gone":
        (copy / "model.safetensors").unlink()
    elif damage == "config no JSON":
        (copy / "config.json").write_text("{")
    elif damage == "unknown kind":
        edit(copy / "config.json", model_type="nobody_knows_it")
    elif damage == "tensor gone":
        tensors = load_file(copy / "model.safetensors")
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    else:
        (copy / "config.json").unlink()
        with pytest.raises(ModelError, match="holds no model"):
            resolve_model(str(copy))
        return
    refused(copy)


@pytest.mark.parametrize("damage", ["no JSON", "gone"])
def test_damaged_tokenizers_are_told(damage, copy):
    if damage == "no JSON":
        (copy / "tokenizer.json").write_text("{")
    else:
        for path in copy.glob("tokenizer*"):
            path.unlink()
    refused(copy, load=load_tokenizer)


@pytest.mark.parametrize("name", ["", "nothing", "/nowhere", "./nowhere", "a/b/c", "~/nowhere"])
def test_names_of_nothing_are_told(name):
    with pytest.raises(ModelError):
        resolve_model(name)


def test_the_hub_without_a_network(capsys):
    told = refused(resolve_model("nobody/nothing"), load=load_tokenizer)
    assert told.startswith("Cannot load the tokenizer of nobody/nothing")


def other_config(folder, **changed):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"num_attention_heads": 5}, "hidden size .* is not a multiple of the number of attention heads"),
        ({"intermediate_size": 40}, "do not fit its configuration; got model.layers.0.mlp.* of .*; expected"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "an unknown entry, 'spiral'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told(changed, wanted, copy):
    other_config(copy, **changed)
    with pytest.raises(ModelError, match=wanted) as caught:
        load_model(str(copy), LoadOptions())
    assert "network" not in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_used_are_told(copy, pairs_file, tmp_path, capsys):
    assert unused_note(load_model(str(copy), LoadOptions())) == ""
    other_config(copy, num_hidden_layers=1, layer_types=None)
    words = ["--model", str(copy), "--data", pairs_file, "--objective", "dpo", "--max_steps", "1"]
    assert main(["train", *words, "--output", str(tmp_path / "run"), "--eval_fraction", "0"]) == 0
    assert "does not use model.layers.1.input_layernorm.weight" in capsys.readouterr().err


def test_a_lost_shard_is_told(copy, tiny_folder):
    model = load_model(str(tiny_folder), LoadOptions())
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="10KB")
    lost = sorted(copy.glob("model-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(ModelError, match=rf"{lost.name}. Fetch or save the model again"):
        load_model(str(copy), LoadOptions())


def test_weights_that_are_no_numbers_are_told(copy):
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file(weights | {name: weights[name] * torch.nan}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"log-probabilities are NaN.* Fetch or save the model again"):
        choose_layout(load_model(str(copy), LoadOptions()), LayoutOptions(), "fp32")


def test_an_adapter_whose_base_moved_is_told(adapter, tmp_path):
    path = adapter / "adapter_config.json"
    moved = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "moved")}
    path.write_text(json.dumps(moved))
    with pytest.raises(ModelError, match=r"names a base model that is not there.* into adapter_config.json"):
        load_model(str(adapter), LoadOptions())


def test_an_adapter_of_a_base_of_another_size_is_told(adapter, copy):
    other_config(copy, hidden_size=16, head_dim=8, num_attention_heads=4)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(copy)).save_pretrained(copy)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(copy)}))
    with pytest.raises(ModelError, match=r"Cannot load the adapter .* size mismatch for .*lora_A"):
        load_model(str(adapter), LoadOptions())
