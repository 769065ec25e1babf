"""Which attention a model gets on a GPU. The device is named and absent: what is proven is computed on the CPU, as
for a model in shards, which is whole and on the CPU when it is proven.
"""

import pytest
import torch

from preftune.errors import ConfigError, ModelError
from preftune.model import attention_varlen
from preftune.model.attention_choice import candidates
from preftune.model.attention_proof import prove_kernel
from preftune.model.attention_segments import SEGMENTS
from preftune.model.attention_varlen import VARLEN, one_by_one
from preftune.model.layout import LayoutOptions
from preftune.model.proof import choose_layout
from tests.models import tiny_model
from tests.pinned import needs_pinned

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


def chosen(name: str, precision: str = "bf16", attention: str = "auto", share: bool = True):
    model = tiny_model(name, std=0.1)
    options = LayoutOptions(attention=attention, share_prompts=share)  # type: ignore[arg-type]
    found = choose_layout(model, options, precision, device=GPU)
    return found, model.config._attn_implementation


@needs_pinned("torch")
def test_a_model_in_shards_gets_varlen_attention_on_its_gpu():
    assert chosen("llama") == (("flat", "varlen attention"), VARLEN)
    assert chosen("qwen3_sliding", attention="varlen") == (("flat", "varlen attention"), VARLEN)


def test_reasons_of_the_refused_are_told():
    (rows, told), attention = chosen("llama", precision="fp32")
    assert (rows, attention) == ("flat", SEGMENTS)
    assert told == (
        "plain attention; not varlen: its kernel computes in 16 bits only (--precision bf16); "
        "not flex: a model in shards is proven on the CPU, which lacks its backward pass"
    )
    (rows, told), _ = chosen("llama", share=False)
    assert rows == "packed" and "not varlen: it computes flat rows, and the model has packed rows" in told


@needs_pinned("torch")
def test_a_function_that_changes_the_model_is_not_taken(monkeypatch):
    monkeypatch.setattr(attention_varlen, "one_by_one", lambda *given: 1.3 * one_by_one(*given))
    (rows, told), attention = chosen("llama")
    assert (rows, attention) == ("flat", SEGMENTS)
    assert "not varlen: its kernel changes values or gradients" in told
    with pytest.raises(ModelError, match=r"layout\.attention varlen cannot be used for this model"):
        chosen("llama", attention="varlen")


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states):
        return states.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.5 * gradient


FAULTS = {
    "a sequence too early": lambda out: out.roll(1, dims=0),
    "a gradient too large": _WrongGradient.apply,
    "bf16 alone": lambda out: out if out.dtype == torch.float32 else out + 0.1,
    "not a number": lambda out: out if out.dtype == torch.float32 else out * torch.nan,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["llama", "qwen3_sliding"])
def test_the_kernel_is_checked_by_itself(fault, name, monkeypatch):
    config = tiny_model(name).config
    assert prove_kernel(config, VARLEN, CPU, True) == prove_kernel(config, VARLEN, CPU, False) == ""
    monkeypatch.setattr(attention_varlen, "one_by_one", lambda *given: FAULTS[fault](one_by_one(*given)))
    assert prove_kernel(config, VARLEN, CPU, True)
    assert "its kernel does not run (RuntimeError" in prove_kernel(config, VARLEN, torch.device("meta"), True)


def test_models_without_packed_rows_get_neither():
    model = tiny_model("llama")
    assert {one.refusal for one in candidates(model, "single", True, GPU)} == {
        "the model has one sequence per row"
    }


def test_on_a_cpu_varlen_is_refused_and_auto_is_plain():
    with pytest.raises(ConfigError, match=r"layout\.attention varlen needs a CUDA device"):
        choose_layout(tiny_model("llama"), LayoutOptions(attention="varlen"), "bf16")
    assert choose_layout(tiny_model("llama"), LayoutOptions(), "bf16") == ("flat", "")
