"""One varlen call per layer, without a GPU: its index arithmetic, what it hands to torch's kernel, and when it is
refused.

The sequences are computed on the CPU one by one from the very indices that the kernel gets.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.model import attention_varlen
from preftune.model.attention_proof import SHAPES, prove_attention
from preftune.model.attention_segments import SEGMENTS, attend, causal, segment_lengths
from preftune.model.attention_varlen import (
    VARLEN,
    attend_varlen,
    kernel,
    key_positions,
    missing_parts,
    one_by_one,
    sequences,
    unavailable,
)
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, score
from tests.model.test_exactness import values_and_gradients
from tests.models import random_groups, tiny_model
from tests.pinned import needs_pinned

CPU = torch.device("cpu")


def test_sequences_by_hand():
    """Row: prompt 0 1 2, completions [3 4] [5]; prompt 6 7, completions [8] [9 10] [11]."""
    segments = ((3, 2, 1), (2, 1, 2, 1))
    lengths, keys = key_positions(segments)
    assert lengths == [5, 1, 3, 2, 1]
    assert keys == [[0, 1, 2, 3, 4], [0, 1, 2, 5], [6, 7, 8], [6, 7, 9, 10], [6, 7, 11]]
    plan = sequences(segments, CPU)
    assert plan.query_starts.tolist() == [0, 5, 6, 9, 11, 12]
    assert plan.key_starts.tolist() == [0, 5, 9, 12, 16, 19]
    assert (plan.most_queries, plan.most_keys) == (5, 5)
    assert plan.query_starts.dtype == plan.key_starts.dtype == torch.int32
    assert plan.bounds[1] == (5, 6, 5, 9)


@pytest.mark.parametrize("segments", [((4, 3), (2, 5)), ((3,),)])
def test_rows_in_which_no_prompt_is_shared_gather_nothing(segments):
    assert sequences(segments, CPU).keys is None


def states(seed: int, length: int, heads: int, dtype=torch.float64) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, length, heads, 8, generator=random, dtype=dtype).transpose(1, 2).requires_grad_()


@given(
    seed=st.integers(0, 10_000),
    window=st.sampled_from([0, 1, 3, 8, 50]),
    key_heads=st.sampled_from([1, 2, 4]),
)
def test_values_and_gradients_are_those_of_segments(seed, window, key_heads):
    segments = segment_lengths(collate(random_groups(seed), LayoutOptions(), "flat"))
    length = sum(map(sum, segments))
    inputs = states(seed, length, 4), states(seed + 1, length, key_heads), states(seed + 2, length, key_heads)
    direction = states(seed + 3, length, 4).detach().transpose(1, 2)
    found, expected = (
        function(
            torch.nn.Module(),
            *inputs,
            torch.full((1, 1, 1, 1), window),
            preftune_segments=segments,
            scaling=0.3,
        )[0]
        for function in (attend_varlen, attend)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad(out, inputs, direction) for out in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def as_documented(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa
) -> torch.Tensor:
    """torch's varlen_attn from its documentation, query by query: the last query of a sequence is at its last
    key, and sees window_size[0] keys before itself (-1: all) and none after.
    """
    out = torch.empty_like(query)
    repeats = query.shape[1] // key.shape[1]
    assert window_size[1] == 0 and enable_gqa == (repeats > 1)
    spans = [
        (*q, *k)
        for q, k in zip(
            zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True),
            zip(cu_seq_k[:-1].tolist(), cu_seq_k[1:].tolist(), strict=True),
            strict=True,
        )
    ]
    assert max_q == max(b - a for a, b, _, _ in spans) and max_k == max(d - c for _, _, c, d in spans)
    for a, b, c, d in spans:
        for row in range(a, b):
            at = d - (b - row)  # the key at the query's own position
            low = c if window_size[0] < 0 else max(c, at - window_size[0])
            for head in range(query.shape[1]):
                seen = key[low : at + 1, head // repeats]
                weights = (scale * seen @ query[row, head]).softmax(0)
                out[row, head] = weights @ value[low : at + 1, head // repeats]
    return out


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_the_kernel_gets_the_same_sequences(window, key_heads, monkeypatch):
    monkeypatch.setattr(attention_varlen, "varlen_attn", as_documented)
    segments = ((3, 2, 1), (2, 1, 2, 1))
    plan = sequences(segments, CPU)
    query, key, value = (
        states(n, 12, h).detach()[0].transpose(0, 1) for n, h in enumerate((4, key_heads, key_heads))
    )
    assert plan.keys is not None
    key, value = key[plan.keys], value[plan.keys]
    found, expected = (run((query, key, value), plan, window, 0.3) for run in (kernel, one_by_one))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_of_a_shared_prompt_are_summed_in_fp32():
    """256 + 1 + 1 is 256 in bf16 one by one, and 258 when it is rounded once."""
    shared = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    gathered = attention_varlen._Gather.apply(shared, torch.zeros(3, dtype=torch.int64))
    gathered.backward(torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16).view(3, 1, 1))
    assert shared.grad is not None and shared.grad.item() == 258.0


@pytest.mark.parametrize("name", ["llama", "qwen3_sliding", "gemma3"])
def test_scores_and_gradients_of_models(name):
    model = tiny_model(name)
    batch = collate(random_groups(seed=5), LayoutOptions(), "flat")
    policy = Policy(model=model, precision="fp32", sharing="flat", sharing_reason="")
    values, gradients = values_and_gradients(model, score(policy, batch).logp)
    model.set_attn_implementation(VARLEN)
    found, others = values_and_gradients(model, score(policy, batch).logp)
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_proof_takes_it(precision):
    model = tiny_model("qwen3_sliding", std=0.1)
    assert prove_attention(model, VARLEN, "flat", precision, SHAPES[:2]) == ""
    assert model.config._attn_implementation == VARLEN


def test_the_proof_refuses_a_kernel_that_aligns_queries_with_the_first_keys(monkeypatch):
    """As FlashAttention before 2.1 did: in fp32 the sequences are right, in 16 bits they are not."""

    def first_keys(states, plan, window, scaling):
        query, key, value = states
        if query.dtype == torch.float32:
            return one_by_one(states, plan, window, scaling)
        out = []
        for a, b, c, _ in plan.bounds:
            parts = query[a:b], key[c : c + b - a], value[c : c + b - a]
            queries, keys, values = (one.transpose(0, 1)[None] for one in parts)
            out.append(causal(queries, keys, values, window, scaling)[0].transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(attention_varlen, "one_by_one", first_keys)
    model = tiny_model("llama", std=0.1)
    told = prove_attention(model, VARLEN, "flat", "bf16", SHAPES[1:2])
    assert "times as far from fp32" in told
    assert model.config._attn_implementation == SEGMENTS


def test_calls_without_segments_see_plain_attention():
    model = tiny_model("qwen3_sliding")
    inputs = torch.arange(1, 10)[None]
    expected = model(input_ids=inputs, use_cache=False).logits
    model.set_attn_implementation(VARLEN)
    torch.testing.assert_close(model(input_ids=inputs, use_cache=False).logits, expected, rtol=0, atol=1e-6)


def test_soft_capped_scores_are_refused():
    query, key, value = (states(n, 5, 2) for n in range(3))
    with pytest.raises(NotImplementedError, match="soft-capped"):
        attend_varlen(
            torch.nn.Module(),
            query,
            key,
            value,
            torch.zeros(1, 1, 1, 1),
            preftune_segments=((3, 2),),
            softcap=50.0,
        )


@needs_pinned("torch")
def test_reasons_why_it_is_not_available():
    assert unavailable(CPU, True) == "its kernel needs a CUDA device, not cpu"
    assert "16 bits" in unavailable(torch.device("cuda:0"), False)
    assert unavailable(torch.device("cuda:0"), True) == ""  # of the torch that the constraints name
    assert "no torch.nn.attention.varlen" in missing_parts(None)
    assert missing_parts(lambda query, *, scale: None).endswith("without enable_gqa, window_size")
