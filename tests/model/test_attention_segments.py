"""Attention by segments against the same attention under an explicit mask, values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from preftune.model.attention_masks import packed_mask
from preftune.model.attention_segments import SEGMENTS, attend, segment_lengths, window_inputs
from preftune.model.layout import LayoutOptions, collate
from preftune.model.load import LoadOptions, load_model
from preftune.model.proof import choose_sharing
from preftune.types import Group
from tests.models import CONFIGS, random_groups, tiny_model


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def test_lengths_by_hand():
    """The last token of a completion is only a target: of [7] nothing stands in the row."""
    long = Group(prompt=ids(1, 2, 3), completions=(ids(4, 5, 6), ids(7), ids(8, 9)), origin="a")
    short = Group(prompt=ids(1), completions=(ids(2, 3),), origin="b")
    batch = collate([short, long], LayoutOptions(), "flat")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 8, 1, 2]]  # longest first
    assert segment_lengths(batch) == ((3, 2, 1), (1, 1))


@given(
    seed=st.integers(0, 10_000),
    window=st.sampled_from([0, 1, 3, 8, 50]),
    key_heads=st.sampled_from([1, 2, 4]),
)
def test_segments_are_the_masked_attention(seed, window, key_heads):
    batch = collate(random_groups(seed), LayoutOptions(), "flat")
    length, random = batch.input_ids.shape[1], torch.Generator().manual_seed(seed)

    def states(heads: int) -> torch.Tensor:
        return (
            torch.randn(1, length, heads, 6, generator=random, dtype=torch.float64)
            .transpose(1, 2)
            .requires_grad_()
        )

    inputs = states(4), states(key_heads), states(key_heads)
    direction = torch.randn(1, length, 4, 6, generator=random, dtype=torch.float64)
    mask = packed_mask(batch, window or None)
    repeated = [one.repeat_interleave(4 // key_heads, dim=1) for one in inputs[1:]]
    expected = scaled_dot_product_attention(inputs[0], *repeated, attn_mask=mask, scale=0.3).transpose(1, 2)
    wanted = torch.autograd.grad(expected, inputs, direction)
    got, _ = attend(
        torch.nn.Module(),
        *inputs,
        torch.full((1, 1, 1, 1), window),
        preftune_segments=segment_lengths(batch),
        scaling=0.3,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(got, inputs, direction), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_each_kind_of_layer_is_told_its_window():
    assert window_inputs(CONFIGS["llama"]()) == torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    assert window_inputs(CONFIGS["mistral"]()) == torch.full((1, 1, 1, 1), 5)
    kinds = window_inputs(CONFIGS["gemma3"]())
    assert isinstance(kinds, dict)
    assert {kind: int(window) for kind, window in kinds.items()} == {
        "sliding_attention": 5,
        "full_attention": 0,
    }


def test_without_segments_it_is_the_attention_of_the_model():
    """Sampling, `generate` and everything else that scores no flat row sees scaled dot products as ever."""
    model = tiny_model("qwen3_sliding")
    inputs = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    ours = model(input_ids=inputs, use_cache=False).logits
    model.config._attn_implementation = "sdpa"
    assert torch.equal(ours, model(input_ids=inputs, use_cache=False).logits)


def test_soft_capped_scores_are_not_for_segments():
    states = torch.zeros(1, 1, 1, 2)
    with pytest.raises(NotImplementedError, match="soft-capped"):
        attend(
            torch.nn.Module(),
            states,
            states,
            states,
            torch.zeros(1, 1, 1, 1),
            preftune_segments=((1,),),
            softcap=3.0,
        )


def test_another_attention_keeps_its_masks():
    model = tiny_model("llama")
    model.config._attn_implementation = "sdpa"
    assert choose_sharing(model, True) == ("shared", "its attention is sdpa")


def test_the_name_stays_out_of_saved_models(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    assert SEGMENTS not in (tmp_path / "config.json").read_text()
    model = load_model(str(tmp_path), LoadOptions())
    assert model.config._attn_implementation == SEGMENTS
    model.save_pretrained(tmp_path / "again")
    assert SEGMENTS not in (tmp_path / "again" / "config.json").read_text()
