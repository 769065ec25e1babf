"""Every causal language model architecture of the installed transformers: exact, or refused with the reason.

The truth is plain transformers, with the attention it chooses, one sequence at a time.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.errors import ModelError
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.kernels.recompute import layers_of
from preftune.model.layout import collate
from preftune.model.load import LoadOptions, load_model
from preftune.model.policy import Policy, score
from preftune.model.proof import check_trains, choose_layout
from preftune.types import Group
from tests.architectures import (
    ARCHITECTURES,
    NOT_MADE,
    OPTIONS,
    TABLE,
    documented,
    make_table,
    result,
    tiny_architecture,
)
from tests.pinned import needs_pinned, pinned

DENSER = {
    "flat": ("flat", "packed", "single"),
    "shared": ("shared", "packed", "single"),
    "packed": ("packed", "single"),
    "single": ("single",),
    "alone": ("alone",),
}
AS_DOCUMENTED = pinned("torch", "transformers")
KINDS = [kind for kind in ARCHITECTURES if kind not in NOT_MADE]


def groups() -> list[Group]:
    random = np.random.default_rng(3)

    def ids(count: int) -> np.ndarray:
        return random.integers(3, 300, count).astype(np.int32)

    return [
        Group(prompt=ids(9), completions=(ids(7), ids(1), ids(12))),
        Group(prompt=ids(40), completions=(ids(21), ids(5))),
        Group(prompt=ids(1), completions=(ids(2), ids(3))),
    ]


def plain_scores(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    parts = []
    for group in groups():
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
            logp = model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)
            parts.append(
                logp[len(group.prompt) - 1 : -1].gather(1, ids[len(group.prompt) :, None]).squeeze(1)
            )
    return with_gradients(model, torch.cat(parts))


def with_gradients(model, logp) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    (torch.randn(len(logp), generator=torch.Generator().manual_seed(6)) * logp).sum().backward()
    return logp.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(found, expected) -> None:
    (logp, gradients), (truth, wanted) = found, expected
    assert float((logp - truth).abs().max() / truth.abs().max()) < 1e-5
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        got = gradients.get(name, torch.zeros_like(gradient))
        assert float((got - gradient).abs().max()) < 1e-4 * largest, name


@pytest.mark.parametrize("kind", KINDS)
def test_exact_or_refused(kind, tmp_path):
    """Loads; every layout it may have gives the scores and gradients of plain transformers; trains with
    recomputed layers, bf16 products and LoRA; what is saved loads as the same function.
    """
    tiny_architecture(kind).save_pretrained(tmp_path / "model")
    try:
        model = load_model(str(tmp_path / "model"), LoadOptions())
        sharing, reason = choose_layout(model, OPTIONS, "fp32")
        check_trains(model, sharing, "fp32")
    except ModelError as error:
        assert "\n" not in str(error)
        assert not AS_DOCUMENTED or documented()[kind] == result("", str(error))
        return
    assert not AS_DOCUMENTED or documented()[kind] == result(sharing, reason)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    truth = plain_scores(plain)
    for layout in DENSER[sharing]:
        check_equal(with_gradients(model, scored(model, layout)), truth)
    if layers_of(model):
        check_equal(with_gradients(model, scored(model, sharing, kept=0)), truth)
    check_low_precision(model, sharing, truth[0])
    check_adapters(model, sharing, truth[0])
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(plain_logits(again), plain_logits(plain))


def scored(model, sharing, precision="fp32", kept=None) -> torch.Tensor:
    policy = Policy(model=model, precision=precision, sharing=sharing, sharing_reason="", kept_positions=kept)
    return score(policy, collate(groups(), OPTIONS, sharing)).logp


def check_low_precision(model, sharing, truth) -> None:
    try:
        choose_layout(model, OPTIONS, "bf16")
    except ModelError as error:
        assert "does not compute in bf16" in str(error)
        return
    low = scored(model, sharing, precision="bf16").detach()
    assert float((low - truth).abs().mean() / truth.abs().mean()) < 0.2


def check_adapters(model, sharing, truth) -> None:
    """Adapters start at zero and learn; taken out again, the model is what it was."""
    peft_model = inject_lora(model, LoraOptions(rank=2))
    logp = scored(model, sharing)
    start = logp.detach()
    assert float((start - truth).abs().max() / truth.abs().max()) < 1e-5
    logp.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.any() for p in trained)
    peft_model.unload()


def plain_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 17)[None], use_cache=False).logits


@needs_pinned("torch", "transformers")
def test_the_table_lists_every_architecture():
    assert documented().keys() == set(ARCHITECTURES)
    assert make_table(documented()) in TABLE.read_text(encoding="utf-8")
    for kind, reason in NOT_MADE.items():
        assert documented()[kind] == result("", reason)
