"""FlexAttention on packed rows: the mask entry by entry, values and gradients of SDPA, and when it is chosen.

On a CPU torch has an unfused form of it, and refuses that form's backward pass: `unfused` allows it, and
compiles nothing.
"""

import copy
import json

import jaxtyping
import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations import flex_attention as transformers_flex

from preftune.errors import ConfigError
from preftune.model.attention_blocks import BLOCK, FLEX, block_mask, key_spans, mask_rule, padded_inputs
from preftune.model.attention_masks import packed_mask, set_attention
from preftune.model.attention_proof import SHAPES, prove_attention
from preftune.model.attention_segments import SEGMENTS
from preftune.model.classifier import check_classifier
from preftune.model.layout import LayoutOptions, Sharing, collate
from preftune.model.policy import Policy, score
from preftune.model.proof import choose_layout
from preftune.model.reference import weights_digest
from preftune.sampling.engine import choose_engine
from preftune.sampling.sample import evaluating
from tests.model.test_exactness import values_and_gradients
from tests.models import CONFIGS, random_groups, tiny_model

TAKES_BLOCKS = [name for name in CONFIGS if name != "gpt2"]
GROUPS = random_groups(seed=5, num_groups=4)
LONG = random_groups(seed=6, num_groups=3, most=90)


def uncompiled(query, key, value, training, **settings):
    return torch_flex.flex_attention(query, key, value, **settings)


@pytest.fixture
def unfused(monkeypatch):
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", uncompiled)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def scores_and_gradients(model, batch, sharing: Sharing = "shared", precision="fp32", kept=None):
    policy = Policy(model=model, precision=precision, sharing=sharing, sharing_reason="", kept_positions=kept)
    return values_and_gradients(model, score(policy, batch).logp)


def largest_difference(one, two) -> float:
    """Of values, relative to the largest value, and of gradients, relative to the largest gradient."""
    (values, gradients), (others, other_gradients) = one, two
    assert gradients.keys() == other_gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    apart = max(float((gradients[name] - other_gradients[name]).abs().max()) for name in gradients)
    return max(float((values - others).abs().max() / values.abs().max()), apart / scale)


@given(
    seed=st.integers(0, 2**32 - 1),
    row=st.integers(1, 80),
    sharing=st.sampled_from(["shared", "packed"]),
    window=st.none() | st.integers(1, 30),
    read_last=st.booleans(),
)
def test_the_rule_is_the_mask_entry_by_entry(seed, row, sharing, window, read_last):
    options = LayoutOptions(micro_batch_tokens=4 * row)
    batch = collate(random_groups(seed, num_groups=3), options, sharing, read_last)
    rows, width = batch.input_ids.shape
    rule = mask_rule(torch.from_numpy(key_spans(batch.rows, width, window)))
    found = torch_flex.create_mask(rule, rows, 1, width, width, device="cpu")
    assert torch.equal(found, packed_mask(batch, window))


def test_spans_by_hand():
    """Prompt 0 1 2, completions [3 4] [5], padding 6; with a window of 3 the second completion's token, at
    position 3, sees prompt tokens 1 and 2.
    """
    own, first, end = key_spans((((3, 2, 1),),), 7).reshape(3, 7).tolist()
    assert own == [0, 0, 0, 3, 3, 5, 6]
    assert (first, end) == ([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 3, 3, 3, 0])
    own, first, end = key_spans((((3, 2, 1),),), 7, window=3).reshape(3, 7).tolist()
    assert own == [0, 0, 0, 3, 3, 5, 6]
    assert (first, end) == ([0, 0, 0, 1, 2, 1, 0], [0, 0, 0, 3, 3, 3, 0])


def spread(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)


def listed(count: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Which blocks of keys each block of queries computes, as its kernel reads them: [R, B, B]."""
    found = torch.zeros(indices.shape, dtype=torch.bool)
    for row, head, q in torch.cartesian_prod(*map(torch.arange, count.shape)).tolist():
        found[row, head, q, indices[row, head, q, : count[row, head, q]].long()] = True
    return found[:, 0]


@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize("most", [90, 700])
def test_blocks_left_out_hold_nothing_and_full_blocks_everything(window, most):
    groups = random_groups(seed=6, num_groups=3, most=most)
    batch = collate(groups, LayoutOptions(micro_batch_tokens=2800), "shared")
    blocks, width = block_mask(batch, window), batch.input_ids.shape[1]
    assert blocks.seq_lengths == (width + -width % BLOCK,) * 2
    assert blocks.full_kv_num_blocks is not None and blocks.full_kv_indices is not None
    partial = listed(blocks.kv_num_blocks, blocks.kv_indices)
    full = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    dense = packed_mask(batch, window)[:, 0]
    side = spread(partial).shape[1]
    more = side - width
    dense = torch.nn.functional.pad(dense, (0, more, 0, more)) | torch.diag(torch.arange(side) >= width)
    assert not (partial & full).any()
    assert not (dense & ~spread(partial | full)).any()  # nothing is lost
    assert dense[spread(full)].all()
    inside = dense.unflatten(1, (-1, BLOCK)).unflatten(3, (-1, BLOCK)).sum((2, 4))[partial]
    assert inside.min() > 0 and inside.max() < BLOCK**2  # and nothing is computed in vain
    assert full.any() == (most == 700 and window != 40)
    assert not (partial | full).all()


def test_a_block_mask_is_made_once_for_a_policy_and_its_reference():
    first, again = (collate(GROUPS, LayoutOptions(micro_batch_tokens=120), "shared") for _ in range(2))
    assert block_mask(first, 7) is block_mask(again, 7)
    assert block_mask(first, 7) is not block_mask(first, 8)
    ids, positions = padded_inputs(first, FLEX)
    assert ids.shape == positions.shape == (len(first.input_ids), BLOCK)
    assert padded_inputs(first, SEGMENTS)[0] is first.input_ids


@pytest.mark.parametrize("sharing", ["shared", "packed"])
@pytest.mark.parametrize("name", TAKES_BLOCKS)
def test_scores_and_gradients_are_those_of_plain_attention(name, sharing, unfused):
    model = tiny_model(name)
    batch = collate(GROUPS, LayoutOptions(micro_batch_tokens=120), sharing)
    expected = scores_and_gradients(model, batch, sharing)
    set_attention(model, FLEX)
    assert largest_difference(expected, scores_and_gradients(model, batch, sharing)) < 1e-5


def test_rows_of_several_blocks(unfused):
    model = tiny_model("qwen3_sliding")
    batch = collate(LONG, LayoutOptions(micro_batch_tokens=1200), "shared")
    assert batch.input_ids.shape[1] > 128
    expected = scores_and_gradients(model, batch)
    set_attention(model, FLEX)
    assert largest_difference(expected, scores_and_gradients(model, batch)) < 1e-5


def test_under_autocast_and_with_gradient_checkpointing(unfused, monkeypatch):
    """Rotary embeddings give fp32 queries beside bf16 values; a layer is computed again outside of the
    forward pass.
    """
    kinds = set()

    def noting(query, key, value, training, **settings):
        kinds.update((query.dtype, key.dtype, value.dtype))
        return uncompiled(query, key, value, training, **settings)

    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", noting)
    model = tiny_model("llama", std=0.1)
    batch = collate(GROUPS, LayoutOptions(micro_batch_tokens=120), "shared")
    expected = scores_and_gradients(model, batch, precision="bf16")
    set_attention(model, FLEX)
    found = scores_and_gradients(model, batch, precision="bf16")
    assert largest_difference(expected, found) < 2e-2
    assert kinds == {torch.bfloat16}
    assert largest_difference(found, scores_and_gradients(model, batch, precision="bf16", kept=0)) < 1e-6


@pytest.mark.parametrize("name", ["llama", "qwen3_sliding", "gemma2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_probe_gives_flex_attention_where_it_changes_nothing(name, precision, unfused):
    model = tiny_model(name, std=0.1)
    model_attention = str(model.config._attn_implementation)
    assert prove_attention(model, FLEX, "shared", precision, SHAPES[:2]) == ""
    assert model.config._attn_implementation == FLEX
    assert all(p.grad is None for p in model.parameters())
    assert torch.compiler.config.recompile_limit >= 64  # a model with windows wants 12, and torch allows 8
    model.requires_grad_(False)  # a reference
    set_attention(model, model_attention)
    assert prove_attention(model, FLEX, "shared", precision, SHAPES[:2]) == ""


@pytest.mark.parametrize(
    ("name", "failure"), [("llama", "not support backward on CPU"), ("gpt2", "AttributeError")]
)
def test_the_probe_leaves_a_model_as_it_is_where_flex_does_not_run(name, failure, monkeypatch):
    """On a CPU its backward pass is refused; GPT-2 wants to know how many dimensions a mask has."""
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", uncompiled)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    model = tiny_model(name)
    told = prove_attention(model, FLEX, "shared", "fp32")
    assert told.startswith("it does not run (")
    assert failure in told
    assert model.config._attn_implementation == SEGMENTS


def test_the_probe_sees_a_difference(unfused, monkeypatch):
    def half_its_scale(query, key, value, *, scale, **settings):
        return uncompiled(query, key, value, scale=0.5 * scale, **settings)

    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", half_its_scale)
    model = tiny_model("llama")
    assert "changes hidden states or gradients" in prove_attention(model, FLEX, "shared", "fp32")
    assert model.config._attn_implementation == SEGMENTS


def test_calls_that_are_not_of_packed_rows_have_plain_attention(unfused):
    model = tiny_model("llama")
    engine = choose_engine(model)
    set_attention(model, FLEX)
    with pytest.raises(TypeError, match="block mask"):  # and not attention to later tokens
        model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    with evaluating(model):
        assert model.config._attn_implementation == SEGMENTS
        assert choose_engine(model) == engine
    assert model.config._attn_implementation == FLEX


def test_the_choice_is_not_saved_with_the_model(tmp_path):
    model = tiny_model("llama")
    digest, plain = weights_digest(model), copy.deepcopy(model.config.to_dict())
    set_attention(model, FLEX)
    assert weights_digest(model) == digest
    assert model.config.to_dict() == plain
    model.save_pretrained(tmp_path)
    assert FLEX not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_what_cannot_be_had_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="flex needs a CUDA device"):
        choose_layout(tiny_model("llama"), LayoutOptions(attention="flex"), "fp32")
    with pytest.raises(ConfigError, match="cannot express this model's soft-capped"):
        choose_layout(tiny_model("gemma2"), LayoutOptions(attention="sdpa"), "fp32")
    with monkeypatch.context() as patch:
        patch.setattr(
            jaxtyping.config, "jaxtyping_disable", True
        )  # as for a user: no type checker in the way
        with pytest.raises(ConfigError, match="attention is not known"):
            LayoutOptions(attention="fast")  # type: ignore[arg-type]


def test_on_a_cpu_attention_is_plain_or_what_was_asked_for():
    model = tiny_model("llama")
    assert choose_layout(model, LayoutOptions(), "fp32") == ("flat", "")
    assert model.config._attn_implementation == SEGMENTS
    batch = collate(GROUPS, LayoutOptions(), "shared")
    expected = scores_and_gradients(model, batch)
    assert choose_layout(model, LayoutOptions(attention="eager"), "fp32") == (
        "shared",
        "its attention is eager",
    )
    assert model.config._attn_implementation == "eager"
    assert 0 < largest_difference(expected, scores_and_gradients(model, batch)) < 1e-5
    check_classifier(model)
