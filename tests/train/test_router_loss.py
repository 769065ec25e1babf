"""Mixtures of experts from the command line: the auxiliary loss is added, logged, or left out on request."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from preftune.cli.main import main
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.folders import PAIRS, metric_rows, write_rows
from tests.models import model_sizes


@pytest.fixture(scope="module")
def experts_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        **model_sizes(),
        head_dim=8,
        num_local_experts=4,
        router_aux_loss_coef=0.5,
        max_position_embeddings=512,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(model, tmp_path, words: str = "") -> int:
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    fixed = (
        f"train --objective dpo --data {data} --model {model} --output {tmp_path / 'run'} --eval_fraction 0"
    )
    more = "--batch_size 8 --max_steps 2 --learning_rate 1e-3 --layout.micro_batch_tokens 200"
    return main([*fixed.split(), *more.split(), *words.split()])


def gates(folder) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {name: weight for name, weight in weights.items() if ".gate." in name}


def test_the_loss_is_added_and_logged_or_left_out(experts_folder, tmp_path, capsys):
    moved = {}
    for name, words in {"own": "", "off": "--router_aux_loss_coef 0"}.items():
        folder = tmp_path / name
        folder.mkdir()
        assert trained(experts_folder, folder, words) == 0
        said = capsys.readouterr().err
        assert ("added with coefficient 0.5" in said) == (name == "own")
        assert ("is not added (coefficient 0, router_aux_loss_coef)" in said) == (name == "off")
        row = metric_rows(folder / "run")[0]
        assert 1.9 < row["router/aux_loss"] < 3.0
        assert 0 < row["router/entropy"] < 1.3863
        assert row["router/load_min"] <= 1 <= row["router/load_max"]
        assert len(row["router/load"]) == 4
        assert row["loss"] == pytest.approx(0.6931, abs=1e-3)
        moved[name] = gates(folder / "run" / "final")
    assert any(not torch.equal(weight, moved["off"][name]) for name, weight in moved["own"].items())


def test_lora_on_fused_experts(experts_folder, tmp_path):
    assert (
        trained(experts_folder, tmp_path, "--lora.rank 2 --lora.target_parameters mlp.experts.down_proj") == 0
    )
    names = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors").keys()
    assert names and all("mlp.experts" in name for name in names)
    assert metric_rows(tmp_path / "run")[1]["router/aux_loss"] > 0


def test_a_dense_model_has_no_such_loss(tiny_folder, tmp_path, capsys):
    assert trained(tiny_folder, tmp_path, "--router_aux_loss_coef 0.1") != 0
    assert "no auxiliary loss can be added for LlamaForCausalLM" in capsys.readouterr().err
