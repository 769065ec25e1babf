"""Adapters: the options of LoRA, adapters on adapters, other kinds, damaged and hostile files."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from preftune.errors import ConfigError, ModelError
from preftune.model.adapter_files import Lora
from preftune.model.adapter_saving import save_adapter
from preftune.model.adapters import LoraOptions, inject_lora, quiet_peft, without_adapter
from preftune.model.layout import LayoutOptions, collate
from preftune.model.load import LoadOptions, load_model
from preftune.model.policy import Policy, score
from tests.folders import save_tiny_model
from tests.models import random_groups, tiny_model

IDS = torch.arange(5, 25)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shaken(model, seed=3, std=0.2):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * std)
    return model


def policy_of(model, peft_model) -> Policy:
    return Policy(model=model, precision="fp32", sharing="flat", sharing_reason="", peft_model=peft_model)


def trained(source, folder, **options):
    """A policy with an adapter over the model in `source`, whose trained weights were moved, saved."""
    model = load_model(str(source), LoadOptions())
    policy = policy_of(model, inject_lora(model, LoraOptions(**{"rank": 3} | options)))
    shaken(policy.peft_model)
    save_adapter(policy, folder)
    return policy


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rslora": True, "alpha": 5.0},
        {"target_modules": "all-linear"},
        {"target_modules": "q_proj, v_proj"},
        {"dora": True},
        {"start": "gaussian"},
        {"start": "pissa"},
        {"start": "olora"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": "embed_tokens,lm_head"},
        {"trainable_tokens": [3, 7]},
    ],
    ids=str,
)
def test_what_is_saved_is_what_trained(options, tiny_folder, tmp_path):
    start = logits(load_model(str(tiny_folder), LoadOptions()))
    model = load_model(str(tiny_folder), LoadOptions())
    policy = policy_of(model, inject_lora(model, LoraOptions(rank=3, **options)))
    torch.testing.assert_close(logits(model), start, atol=1e-4, rtol=0)
    shaken(policy.peft_model)
    wanted = logits(model)
    assert float((wanted - start).abs().max()) > 1e-2
    with without_adapter(policy.peft_model):
        torch.testing.assert_close(logits(model), start, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)
    save_adapter(policy, tmp_path / "final")
    loaders = [
        peft.AutoPeftModelForCausalLM.from_pretrained,
        lambda path: load_model(str(path), LoadOptions()),
    ]
    if not options.get("dora"):  # transformers' own reader of adapters leaves DoRA's magnitudes out
        loaders.append(AutoModelForCausalLM.from_pretrained)
    for load in loaders:
        with quiet_peft():
            torch.testing.assert_close(logits(load(tmp_path / "final").eval()), wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ({}, {"rank": 2, "alpha": 7.0}, False),
        ({"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "q_proj"], "rslora": True}, False),
        ({}, {"start": "pissa"}, False),
        ({"dora": True}, {}, True),
        ({"modules_to_save": ["lm_head"]}, {}, True),
    ],
    ids=str,
)
def test_an_adapter_on_an_adapter_loads_everywhere(first, second, whole, tiny_folder, tmp_path):
    trained(tiny_folder, tmp_path / "first", **first)
    policy = trained(tmp_path / "first", tmp_path / "second", **second)
    wanted = logits(policy.model)
    assert (tmp_path / "second" / "config.json").is_file() == whole
    loaders = [AutoModelForCausalLM.from_pretrained, lambda path: load_model(str(path), LoadOptions())]
    if not whole:
        loaders.append(peft.AutoPeftModelForCausalLM.from_pretrained)
        named = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
        assert named["base_model_name_or_path"] == str(tiny_folder)
        assert str(tiny_folder) not in (tmp_path / "second" / "README.md").read_text().split("---")[1]
    for load in loaders:
        with quiet_peft():
            torch.testing.assert_close(logits(load(tmp_path / "second").eval()), wanted, atol=3e-4, rtol=0)


def test_all_weights_of_a_merged_adapter_train(tiny_folder, tmp_path):
    trained(tiny_folder, tmp_path / "first")
    model = load_model(str(tmp_path / "first"), LoadOptions())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("words", ["embed_tokens", "lm_head"])
def test_adapters_on_tied_embeddings_are_refused(words):
    model = tiny_model("gpt2")
    with pytest.raises(ConfigError, match=r"one matrix|names no module"):
        inject_lora(model, LoraOptions(rank=2, modules_to_save=words))
    with pytest.raises(ConfigError, match="one matrix"):
        inject_lora(tiny_model("gpt2"), LoraOptions(rank=2, target_modules="wte"))


def test_experts_get_adapters_by_the_names_of_their_parameters(tmp_path):
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    policy = trained(
        tmp_path / "base", tmp_path / "final", target_parameters=["mlp.experts.gate_up_proj"], rank=2
    )
    with quiet_peft():
        again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    torch.testing.assert_close(logits(again), logits(policy.model), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="names no parameter"):
        inject_lora(
            load_model(str(tmp_path / "base"), LoadOptions()), LoraOptions(rank=2, target_parameters="nope")
        )


def test_dropout_acts_in_training_alone():
    model = tiny_model("llama")
    policy = policy_of(model, inject_lora(model, LoraOptions(rank=2, dropout=0.5)))
    shaken(policy.peft_model.eval())
    batch = collate(random_groups(), LayoutOptions(), "flat")
    with torch.no_grad():
        assert torch.equal(score(policy, batch).logp, score(policy, batch).logp)
    one, two = score(policy, batch).logp, score(policy, batch).logp
    assert not torch.equal(one, two)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("size", [30, 80])
def test_a_resized_vocabulary_is_that_of_the_adapter(size, tmp_path):
    save_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(300 + size, mean_resizing=False)
    with quiet_peft():
        wrapped = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=2,
                target_modules=["q_proj"],
                modules_to_save=["embed_tokens", "lm_head"],
                task_type="CAUSAL_LM",
            ),
        )
    shaken(wrapped.eval())
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = load_model(str(tmp_path / "adapter"), LoadOptions())
    assert merged.get_input_embeddings().num_embeddings == 300 + size
    torch.testing.assert_close(logits(merged), logits(wrapped), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "prefix tuning"),
        (peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "prompt tuning"),
    ],
    ids=["prefix", "prompt"],
)
def test_prompt_adapters_are_refused_by_name(kind, name, tiny_folder, tmp_path):
    with quiet_peft():
        wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), kind)
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=name):
        load_model(str(tmp_path / "adapter"), LoadOptions())


@pytest.mark.parametrize("change", [{"r": 10**6}, {"rank_pattern": {"q_proj": 10**7}}, {"r": -1}])
def test_a_rank_that_the_weights_do_not_have_is_refused(change, tiny_folder, tmp_path):
    trained(tiny_folder, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match="rank"):
        load_model(str(tmp_path / "adapter"), LoadOptions())


@pytest.mark.parametrize("name", ["../weights.safetensors", "/weights.safetensors", "a/b.safetensors"])
def test_an_index_may_not_leave_its_folder(name, tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside its folder"):
        load_model(str(tmp_path / "model"), LoadOptions())


def test_a_plain_adapter_says_so(tiny_folder, tmp_path):
    trained(tiny_folder, tmp_path / "plain")
    trained(tiny_folder, tmp_path / "dora", dora=True)
    assert Lora.read(str(tmp_path / "plain")).is_plain
    assert not Lora.read(str(tmp_path / "dora")).is_plain
