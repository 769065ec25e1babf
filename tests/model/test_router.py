"""The auxiliary loss of experts: transformers computes the same number and gradient from padded sequences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from preftune.errors import ConfigError
from preftune.model.attention_segments import SEGMENTS
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, route, score
from preftune.model.proof import choose_layout
from preftune.model.router import auxiliary_loss
from preftune.model.router_search import find_router
from preftune.objectives.sft import SFT
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_router_loss, make_score
from preftune.train.step import run_step
from preftune.types import Group, Labels
from tests.models import ENDS, VOCAB, model_sizes

_SIZES = dict(vocab_size=VOCAB, **model_sizes(), head_dim=8, **ENDS, max_position_embeddings=128)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
CONFIGS = {
    "mixtral": lambda: MixtralConfig(**_SIZES, num_local_experts=4, router_aux_loss_coef=0.5),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZES, **_EXPERTS, router_aux_loss_coef=0.25),
    "olmoe": lambda: OlmoeConfig(**_SIZES, num_experts=5, num_experts_per_tok=3),
    "gpt_oss": lambda: GptOssConfig(
        **_SIZES,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        num_local_experts=4,
        num_experts_per_tok=1,
    ),
}
OPTIONS = LayoutOptions(micro_batch_tokens=10**6)


def experts(name: str, attention: str = SEGMENTS):
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model


def groups(completions: int) -> list[Group]:
    random = np.random.default_rng(5)

    def ids(count: int) -> np.ndarray:
        return random.integers(3, VOCAB, count).astype(np.int32)

    lengths = ((9, 4), (3, 12), (17, 6))
    return [
        Group(
            prompt=ids(prompt),
            completions=tuple(ids(length + k) for k in range(completions)),
            labels=(1,) * completions,
            origin=f"row {prompt}",
        )
        for prompt, length in lengths
    ]


def policy_of(model, **more) -> Policy:
    sharing, _ = choose_layout(model, OPTIONS, "fp32")
    router, _ = find_router(model, None)
    return Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="", router=router, **more)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(found, expected) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for name in found.keys() | expected.keys():
        got, wanted = found.get(name, torch.zeros(())), expected.get(name, torch.zeros(()))
        assert float((got - wanted).abs().max()) < 1e-5 * largest, name


def padded_loss(model, some: list[Group]) -> torch.Tensor:
    """The library's own auxiliary loss of sequences without their last token, padded on the right."""
    rows = [np.concatenate([group.prompt, ids])[:-1] for group in some for ids in group.completions]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens).long()
        mask[row, : len(tokens)] = 1
    return model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss


def shared_loss(model, some: list[Group]) -> torch.Tensor:
    """The library's function on sequences computed one at a time, where a token of a prompt of K completions
    weighs 1 / K in each.
    """
    logits, weights = [], []
    for group in some:
        for ids in group.completions:
            tokens = torch.from_numpy(np.concatenate([group.prompt, ids])[:-1]).long()
            logits.append(model(input_ids=tokens[None], output_router_logits=True).router_logits)
            weights += [1 / len(group.completions)] * len(group.prompt) + [1.0] * (len(ids) - 1)
    layers = tuple(torch.cat(layer) for layer in zip(*logits, strict=True))
    config = model.config
    return load_balancing_loss_func(
        layers, layers[0].shape[-1], config.num_experts_per_tok, torch.tensor(weights)
    )


def plain_loss(model, some: list[Group]) -> torch.Tensor:
    """Cross-entropy per token of the completions, one sequence at a time."""
    parts = []
    for group in some:
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
            logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)[len(group.prompt) - 1 : -1]
            parts.append(logp.gather(1, ids[len(group.prompt) :, None])[:, 0])
    return -torch.cat(parts).mean()


@pytest.mark.parametrize("sharing", ["flat", "shared", "packed", "single", "alone"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_it_is_the_loss_of_transformers(name, sharing):
    model, plain = experts(name), experts(name, "sdpa")
    policy = policy_of(model)
    for some, oracle in ((groups(1), padded_loss), (groups(3), shared_loss)):
        expected = oracle(plain, some)
        laid = replace(policy, sharing=sharing)
        use = score(laid, collate(some, OPTIONS, sharing)).router
        assert use is not None
        found = auxiliary_loss(use)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        check_gradients(gradients(model, found), gradients(plain, expected))
        again = auxiliary_loss(route(laid, collate(some, OPTIONS, sharing)))
        torch.testing.assert_close(again, expected.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kept", [None, 0])
@pytest.mark.parametrize("tokens", [10**6, 40, 1])
def test_a_step_has_the_same_gradient_however_it_is_cut(tokens, kept):
    """The gradient of objective + coefficient x auxiliary loss of the whole step, with and without recomputation."""
    model, plain = experts("mixtral"), experts("mixtral", "sdpa")
    policy, some, objective = policy_of(model, kept_positions=kept), groups(2), SFT()
    assert policy.router is not None and policy.router.coefficient == 0.5
    loss = plain_loss(plain, some)
    reference = gradients(plain, loss + 0.5 * shared_loss(plain, some))
    pieces = cut_step(some, Labels, policy, LayoutOptions(micro_batch_tokens=tokens))
    assert len(pieces) == {10**6: 1, 40: 3, 1: 3}[tokens]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    nothing = Anchors()
    result = run_step(
        pieces,
        objective,
        make_score(policy, objective, nothing),
        parameters,
        optimizer,
        0.0,
        router=make_router_loss(policy),
    )
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    check_gradients(found, reference)
    expected = shared_loss(plain, some).item()
    assert result.metrics["router/aux_loss"] == pytest.approx(expected, rel=1e-5)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert sum(result.expert_loads) == pytest.approx(1.0, abs=1e-5)
    assert result.metrics["router/load_max"] >= 4 * max(result.expert_loads) - 1e-5


def test_the_number_of_experts_of_a_token_is_found():
    for name, top_k in {"mixtral": 2, "qwen3_moe": 2, "olmoe": 3, "gpt_oss": 1}.items():
        router, line = find_router(experts(name, "eager"), None)
        assert router is not None and router.top_k == top_k
        assert "the model's own" in line


def test_statistics_of_an_even_router():
    """Two experts of four get all tokens of an even router: its entropy is log 4, its loss top_k."""
    model = experts("mixtral")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp.gate" in name:
                parameter.zero_()
    use = route(policy_of(model), collate(groups(1), OPTIONS, "flat"))
    assert float(use.entropy / use.rows) == pytest.approx(np.log(4), rel=1e-6)
    assert float(auxiliary_loss(use)) == pytest.approx(2.0, rel=1e-5)
    assert sorted((use.count.sum(0) / use.rows).tolist()) == pytest.approx([0, 0, 1, 1])


def test_models_without_the_loss():
    dense = AutoModelForCausalLM.from_config(Qwen3Config(**_SIZES))
    assert find_router(dense, None) == (None, "")
    with pytest.raises(ConfigError, match="no auxiliary loss can be added for Qwen3ForCausalLM"):
        find_router(dense, 0.1)
    router, line = find_router(experts("mixtral"), 0.0)
    assert router is not None and router.coefficient == 0.0
    assert "not added" in line
