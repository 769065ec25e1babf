"""Merging: the maths by hand, the verb on tiny models, and everything that must not be merged."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import main
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.load import LoadOptions, load_model
from preftune.model.merge import angle, linear, merge_slerp, merge_weights, slerp, towards
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.folders import save_tiny_model, weights_of
from tests.models import tiny_model


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(found.flatten(), vector(*expected), rtol=1e-12, atol=1e-12)


def test_slerp_at_a_right_angle():
    """Half way between (2, 0) and (0, 2): the arc keeps the length where the line would lose a third of it."""
    close(slerp(vector(2, 0), vector(0, 2), 0.5), math.sqrt(2), math.sqrt(2))
    close(slerp(vector(2, 0), vector(0, 2), 1 / 3), 2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6))
    close(
        slerp(vector(1, 0), vector(0, 3), 0.5), math.sqrt(0.5), 3 * math.sqrt(0.5)
    )  # lengths are not made equal


def test_slerp_at_sixty_degrees():
    """sin 30 / sin 60 = 1 / sqrt 3 of each."""
    close(slerp(vector(1, 0), vector(0.5, math.sqrt(3) / 2), 0.5), 1.5 / math.sqrt(3), 0.5)


@pytest.mark.parametrize("other", [(0.0, 2.0), (3.0, 0.0), (-3.0, 0.0), (0.0, 0.0), (0.6, 0.8)])
def test_slerp_at_its_ends(other):
    close(slerp(vector(1, 0), vector(*other), 0.0), 1, 0)
    close(slerp(vector(1, 0), vector(*other), 1.0), *other)


def test_slerp_of_one_direction_is_the_line():
    close(slerp(vector(1, 1), vector(3, 3), 0.25), 1.5, 1.5)
    close(slerp(vector(1, 0), vector(-3, 0), 0.25), 0, 0)
    close(slerp(vector(0, 0), vector(2, 0), 0.25), 0.5, 0)
    nearly = slerp(
        vector(1, 0), vector(1, 1e-5), 0.5
    )  # the formula right beside the line: no digits are lost
    torch.testing.assert_close(nearly, vector(1, 0.5e-5), rtol=1e-9, atol=1e-10)


def test_angles():
    assert angle(vector(1, 0), vector(0, 5)) == pytest.approx(math.pi / 2)
    assert angle(vector(1, 0), vector(-2, 0)) == pytest.approx(math.pi)
    assert angle(vector(1, 0), vector(1, 1e-9)) == pytest.approx(1e-9, rel=1e-6)
    assert angle(torch.zeros(2), vector(1, 0)) == 0.0


def test_three_models_have_equal_shares():
    """At right angles, one after another: (e1, e2) half way, then e3 at a third."""
    base = vector(1, 1, 1)
    models = [base + vector(*row) for row in torch.eye(3).tolist()]
    half = math.sqrt(0.5)
    two, three = math.sin(math.pi / 3), math.sin(math.pi / 6)  # of 90 degrees: two thirds and a third
    close(merge_slerp(base, models), 1 + two * half, 1 + two * half, 1 + three)
    close(merge_slerp(base, models[:2]), 1 + half, 1 + half, 1)


def test_linear_and_towards():
    close(linear([vector(1, 0), vector(3, 4)], [0.25, 0.75]), 2.5, 3)
    close(towards(vector(1, 1), vector(3, 5), 0.25), 1.5, 2)


def test_each_tensor_turns_by_itself():
    """WARP's own formula on two tensors of different angles, then 0.3 of the way from the base; counts stay
    as they are.
    """
    base = {"a": torch.zeros(2), "b": torch.ones(2), "n": torch.tensor(7)}
    one = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([2.0, 1.0]), "n": torch.tensor(7)}
    two = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([4.0, 1.0]), "n": torch.tensor(7)}
    merged = merge_weights([one, two], base, "slerp", [], 0.3)
    torch.testing.assert_close(merged["a"], torch.full((2,), 0.3 * math.sqrt(2)))
    torch.testing.assert_close(merged["b"], torch.tensor([1 + 0.3 * 2.0, 1.0]))
    assert merged["n"] == 7 and merged["a"].dtype == torch.float32
    as_line = merge_weights([one, two], None, "linear", [0.5, 0.5], 1.0)
    torch.testing.assert_close(as_line["a"], torch.tensor([1.0, 1.0]))


# --- the verb ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("merge")
    return {
        name: str(save_tiny_model(home / name, seed=seed)) for seed, name in enumerate(("base", "one", "two"))
    }


def test_linear_models(folders, tmp_path, capsys):
    out = tmp_path / "new" / "merged"
    words = [folders["one"], folders["two"], "--weights", "[0.25, 0.75]", "--output", str(out), "--json"]
    assert main(["merge", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == [0.25, 0.75] and told["angle"] is None
    assert json.loads((out / "merge.json").read_text()) == told
    found, one, two = (weights_of(folder) for folder in (out, Path(folders["one"]), Path(folders["two"])))
    for name in one:
        torch.testing.assert_close(found[name], 0.25 * one[name] + 0.75 * two[name], rtol=1e-6, atol=1e-7)
    AutoModelForCausalLM.from_pretrained(out)
    assert (
        AutoTokenizer.from_pretrained(out).chat_template
        == AutoTokenizer.from_pretrained(folders["one"]).chat_template
    )
    assert not [path for path in out.parent.iterdir() if path.name != "merged"]


def test_warp(folders, tmp_path, capsys):
    out = tmp_path / "warp"
    words = [folders["one"], folders["two"], "--base", folders["base"], "--method", "slerp", "--share", "0.3"]
    assert main(["merge", *words, "--output", str(out)]) == 0
    assert (
        "2 models merged (slerp); the first two point 60 degrees apart" in capsys.readouterr().out
    )  # two draws minus a third
    found, base, one, two = (
        weights_of(Path(f)) for f in (out, folders["base"], folders["one"], folders["two"])
    )
    name = "model.layers.0.mlp.up_proj.weight"
    first, second = (one[name] - base[name]).double(), (two[name] - base[name]).double()
    omega = torch.acos((first * second).sum() / (first.norm() * second.norm()))
    arc = torch.sin(omega / 2) / torch.sin(omega) * (first + second)
    torch.testing.assert_close(found[name].double(), base[name].double() + 0.3 * arc, rtol=1e-5, atol=1e-6)


def test_one_model_towards_its_base(folders, tmp_path):
    out = tmp_path / "liti"
    assert (
        main(["merge", folders["one"], "--base", folders["base"], "--share", "0.5", "--output", str(out)])
        == 0
    )
    found, base, one = (weights_of(Path(folder)) for folder in (out, folders["base"], folders["one"]))
    torch.testing.assert_close(found["lm_head.weight"], (base["lm_head.weight"] + one["lm_head.weight"]) / 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_adapter_into_its_base(folders, tmp_path, precision):
    model = load_model(folders["base"], LoadOptions())
    wrapped = inject_lora(model, LoraOptions(rank=2))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = wrapped(input_ids=torch.tensor([[5, 6, 7]])).logits
    out = tmp_path / "whole"
    assert main(["merge", str(tmp_path / "adapter"), "--output", str(out), "--precision", precision]) == 0
    assert not (out / "adapter_config.json").exists()
    whole = AutoModelForCausalLM.from_pretrained(out)
    assert whole.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    tolerance = 1e-5 if precision == "fp32" else 0.05
    torch.testing.assert_close(
        whole(input_ids=torch.tensor([[5, 6, 7]])).logits.float(), expected, rtol=0, atol=tolerance
    )


def test_tied_weights_stay_tied(tmp_path):
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        tiny_model("gpt2", seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    assert main(["merge", str(tmp_path / "0"), str(tmp_path / "1"), "--output", str(tmp_path / "out")]) == 0
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight is merged.transformer.wte.weight


def test_what_cannot_be_merged(folders, tmp_path, capsys):
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    for name, family in {"gpt2": "gpt2", "small": "llama"}.items():
        tiny_model(family).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    tiny_model("llama").save_pretrained(tmp_path / "other_words")
    byte_tokenizer(CHATML, eos="<|im_end|>")
    altered = byte_tokenizer(CHATML, eos="<|im_end|>")
    altered.add_tokens(["new"])
    altered.save_pretrained(tmp_path / "other_words")
    one, two, base = folders["one"], folders["two"], folders["base"]
    for words, wanted in (
        ([one, str(tmp_path / "gpt2")], "different architectures cannot be merged; got LlamaForCausalLM"),
        ([one, str(tmp_path / "small")], "different shapes cannot be merged"),
        ([one, str(tmp_path / "other_words")], "different tokenizers"),
        ([one, two, "--method", "slerp"], "two or more models, and --base"),
        ([one, "--method", "slerp", "--base", base], "two or more models, and --base"),
        (
            [one, two, "--method", "slerp", "--base", base, "--weights", "[0.5, 0.5]"],
            "weights has no effect on slerp",
        ),
        ([one, two, "--weights", "[0.5, 0.6]"], "weights do not fit"),
        ([one, two, "--weights", "[1.0]"], "weights do not fit"),
        ([one, two, "--share", "0.5"], "share has no effect without a base"),
        ([one, two, "--base", base, "--share", "0"], "share is out of range"),
        ([one, two, "--base", base], "base has no effect on linear"),
        ([one], "nothing to be merged with"),
        ([], "A setting is missing"),
        (["/nowhere", one], "There is no model"),
    ):
        assert main(["merge", *words, "--output", str(tmp_path / "out")]) == 2, words
        told = capsys.readouterr().err
        assert wanted in told and told.count("\n") == 1, told
        assert not (tmp_path / "out").exists()
    assert main(["merge", one, two, "--output", str(tmp_path / "gpt2")]) == 2
    assert "is there already" in capsys.readouterr().err
