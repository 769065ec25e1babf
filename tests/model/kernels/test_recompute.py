"""Layers that are computed a second time, and gradients as large as the vocabulary, held once: the same
numbers with less.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OPTConfig, OPTForCausalLM

from preftune.errors import ModelError
from preftune.model import scoring
from preftune.model.kernels.gated import lighten_mlps
from preftune.model.kernels.recompute import check_recomputes, kept_as, layers_of, num_recomputed, recomputing
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, score
from preftune.objectives.dpo import DPO
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_score
from preftune.train.step import run_step
from tests.models import CONFIGS, random_groups, tiny_model

GROUPS = random_groups(seed=5, num_groups=4)


def policy_of(model, kept=None, sharing="shared", precision="fp32") -> Policy:
    return Policy(model=model, precision=precision, sharing=sharing, sharing_reason="", kept_positions=kept)


def scored(policy, into_grad=False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = collate(GROUPS, LayoutOptions(), policy.sharing)
    logp = score(policy, batch, into_grad=into_grad).logp
    mix = torch.randn(len(logp), generator=torch.Generator().manual_seed(6))
    (mix * logp).sum().backward()
    return logp.detach(), {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


def counted(layer) -> list[int]:
    calls: list[int] = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kept", [0, 60])
def test_no_bit_changes(name, kept):
    model = tiny_model(name)
    expected, wanted = scored(policy_of(copy.deepcopy(model)))
    positions, layers = collate(GROUPS, LayoutOptions(), "shared").num_real_positions, layers_of(model)
    calls = [counted(next(iter(layer.children()))) for layer in layers]
    found, gradients = scored(policy_of(model, kept))
    assert torch.equal(found, expected)
    for gradient, right in zip(gradients.values(), wanted.values(), strict=True):
        assert torch.equal(gradient, right)
    again = num_recomputed(len(layers), positions, kept)
    usual = [1 if len(own) == 1 else 2 for own in calls]
    assert usual == [2] * again + [1] * (len(layers) - again), calls
    assert again > 0 and (again == len(layers)) == (kept == 0)


def test_what_is_kept_is_less():
    kept = {}
    for limit in (None, 60, 0):
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = score(policy_of(tiny_model("llama"), limit), collate(GROUPS, LayoutOptions(), "shared"))
        kept[limit] = sum(storage.nbytes() for storage in saved.values())
        del held
    assert kept[0] < 0.8 * kept[60] < 0.64 * kept[None]


@given(layers=st.integers(1, 100), positions=st.integers(1, 10_000), kept=st.integers(0, 10_000))
def test_the_fewest_layers_within_the_limit(layers, positions, kept):
    again = num_recomputed(layers, positions, kept)
    assert 0 <= again <= layers

    def takes(again: int) -> float:  # in positions of a layer; an input is 0.08 of what a layer keeps
        return positions * ((layers - again) + 0.08 * again)

    assert again == layers or takes(again) <= layers * kept * (1 + 1e-9)
    assert again == 0 or takes(again - 1) > layers * kept * (1 - 1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layers_last_product_is_not_computed_twice(precision):
    """Of its seven, the backward wants the outputs of the other six."""

    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.products += func is torch.ops.aten.mm.default
            return func(*args, **(kwargs or {}))

    found = []
    for limit in (None, 0):
        model = tiny_model("llama")
        assert lighten_mlps(model) == len(layers_of(model)) == 2
        with Count() as count:
            scored(policy_of(model, limit, precision=precision))
        found.append(count.products)
    assert found[1] - found[0] == 2 * 6


def test_what_a_long_row_keeps_in_positions():
    assert [kept_as(n, 100) for n in (50, 100, 300, 2000)] == [50.0, 100.0, 100.0, 160.0]
    assert (
        kept_as(300, None) == kept_as(300, 0) == 300.0
    )  # all of it, and the inputs of all: in proportion to the positions


def test_nothing_is_computed_twice_without_a_gradient():
    model = tiny_model("llama")
    calls = counted(model.model.layers[0].mlp)
    with torch.no_grad():
        score(policy_of(model, 0), collate(GROUPS, LayoutOptions(), "shared"))
    assert len(calls) == 1 and "forward" not in vars(model.model.layers[0])


def test_layers_are_given_back_after_an_error():
    model = tiny_model("llama")
    with pytest.raises(KeyError), recomputing(model, 10, 0):
        assert all("forward" in vars(layer) for layer in layers_of(model))
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layers_of(model))


def opt_with_dropout() -> OPTForCausalLM:
    """Its layers drop out themselves, in their own forward, and not through a module of theirs."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    config = OPTConfig(**sizes, dropout=0.5, word_embed_proj_dim=16)
    return OPTForCausalLM(config).eval()


@pytest.mark.parametrize("make", [lambda: tiny_model("gpt2"), opt_with_dropout])
def test_dropout_never_acts(make):
    """GPT-2's default dropout is 0.1."""
    policy, batch = policy_of(make(), 0), collate(GROUPS, LayoutOptions(), "shared")
    assert torch.equal(score(policy, batch).logp, score(policy, batch).logp)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ModelError, match="cannot be computed a second time"):
        check_recomputes(torch.nn.Linear(2, 2))


# --- gradients of head and embedding, held once ---


def tied_model(name):
    model = tiny_model(name)
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


def untied_model(name):
    model = tiny_model(name)
    model.get_output_embeddings().weight = torch.nn.Parameter(
        model.get_output_embeddings().weight.detach().clone()
    )
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_autograd(name, tied):
    model = tied_model(name) if tied else untied_model(name)
    other = copy.deepcopy(model)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    for _ in range(2):  # the second adds to what is there
        expected, wanted = scored(policy_of(other))
        found, gradients = scored(policy_of(model), into_grad=True)
    assert torch.equal(found, expected) and gradients.keys() == wanted.keys()
    for gradient, right in zip(gradients.values(), wanted.values(), strict=True):
        assert not gradient.is_sparse
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))
    assert not model.get_input_embeddings().sparse


def test_no_second_gradient_of_the_vocabulary_is_made(monkeypatch):
    """Without `into_grad` a dense one each of head and embedding."""
    monkeypatch.setattr(scoring, "_WORK_ELEMENTS", 8 * 64)
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if (
                torch.is_tensor(out)
                and not out.is_sparse
                and out.shape == shape
                and out.untyped_storage().data_ptr() not in held
            ):
                made.append(func)
            return out

    for into_grad in (True, False):
        model, batch = tied_model("llama"), collate(GROUPS, LayoutOptions(), "flat")
        weight = model.get_input_embeddings().weight
        weight.grad = torch.zeros_like(weight)
        shape, held = weight.shape, {one.untyped_storage().data_ptr() for one in (weight, weight.grad)}
        loss = score(policy_of(model, sharing="flat"), batch, into_grad=into_grad).logp.sum()
        made.clear()
        with Watch():
            loss.backward()
        assert bool(made) != into_grad, made


@pytest.mark.parametrize("tokens", [1, 7, 128])
def test_a_kept_chunk_may_be_worked_on_in_any_pieces(tokens, monkeypatch):
    expected = scored(policy_of(tiny_model("gemma3")))  # its logits are capped, and their tanh is kept too
    monkeypatch.setattr(scoring, "_WORK_ELEMENTS", 1)
    monkeypatch.setattr(scoring, "_WORK_TOKENS", tokens)
    found = scored(policy_of(tiny_model("gemma3")))
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-5 * max(float(g.abs().max()) for g in expected[1].values())
    )


def test_weights_in_bf16_do_not_sum_their_gradient_in_bf16():
    untied = untied_model("llama").bfloat16()
    score(policy_of(untied), collate(GROUPS, LayoutOptions(), "shared"), into_grad=True)
    assert (
        untied.get_output_embeddings().weight.grad is None
    )  # autograd is given it whole; of a head in fp32 there is one by now


@pytest.mark.parametrize("trains", ["neither", "embedding", "head"])
def test_what_does_not_train_gets_no_gradient(trains):
    model = untied_model("llama")
    model.get_output_embeddings().weight.requires_grad_(trains == "head")
    model.get_input_embeddings().weight.requires_grad_(trains == "embedding")
    scored(policy_of(model), into_grad=True)
    assert (model.get_output_embeddings().weight.grad is not None) == (trains == "head")
    assert (model.get_input_embeddings().weight.grad is not None) == (trains == "embedding")


# --- casts ---


def test_a_step_casts_each_weight_once_and_the_gradient_is_the_same():
    objective, layout = DPO(), LayoutOptions(micro_batch_tokens=1)
    anchors = Anchors(
        reference=lambda part: [
            [-torch.ones(len(ids)).numpy() for ids in group.completions] for group in part
        ]
    )
    casts: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if (
                func is torch.ops.aten._to_copy.default
                and args[0] is weight
                and (kwargs or {}).get("dtype") == torch.bfloat16
            ):
                casts.append(1)
            return func(*args, **(kwargs or {}))

    found = []
    for together in (True, False):
        model = tiny_model("llama")
        weight = model.model.layers[1].mlp.up_proj.weight
        policy = policy_of(model, precision="bf16")
        pieces = cut_step(GROUPS, objective.signal, policy, layout)
        assert len(pieces) == len(GROUPS)
        parameters = list(model.parameters())
        scorer = make_score(policy, objective, anchors)
        if not together:
            inner = scorer

            def scorer(piece, inner=inner):
                torch.clear_autocast_cache()
                return inner(piece)

        with Watch():
            run_step(pieces, objective, scorer, parameters, torch.optim.SGD(parameters, lr=0.0), 0.0)
        found.append([p.grad.clone() for p in parameters])
    assert len(casts) == 1 + len(GROUPS)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
