"""The log-prob operation against plain log-softmax: values, gradients, every transform of the logits, memory."""

import subprocess
import sys

import pytest
import torch

from preftune.policy.scoring import Head, score_tokens

N, H, V = 13, 7, 29


def inputs(dtype=torch.float64, bias=True):
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, H, generator=random, dtype=dtype).requires_grad_()
    weight = torch.randn(V, H, generator=random, dtype=dtype).requires_grad_()
    shift = torch.randn(V, generator=random, dtype=dtype).requires_grad_() if bias else None
    return hidden, weight, shift, torch.randint(0, V, (N,), generator=random)


def naive(hidden, weight, bias, targets, scale, softcap, temperature):
    z = hidden @ weight.t() + (0 if bias is None else bias)
    z = z * scale
    z = softcap * torch.tanh(z / softcap) if softcap else z
    z = z / temperature
    logp = z.log_softmax(-1)
    target = z.gather(1, targets[:, None]).squeeze(1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1), target, z.logsumexp(-1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("scale", "softcap", "temperature"), [(1.0, None, 1.0), (0.5, None, 0.7), (1.0, 3.0, 1.0), (1.3, 2.0, 1.7)]
)
@pytest.mark.parametrize("chunk", [1, 5 * V, 100 * V])
def test_equals_the_definition(bias, scale, softcap, temperature, chunk):
    hidden, weight, shift, targets = inputs(bias=bias)
    head = Head(weight=weight, bias=shift, scale=scale, softcap=softcap)
    got = score_tokens(hidden, head, targets, temperature=temperature, entropy=True, logits=True, chunk_elements=chunk)
    expected = naive(hidden, weight, shift, targets, scale, softcap, temperature)
    mix = torch.randn(4, N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    leaves = [leaf for leaf in (hidden, weight, shift) if leaf is not None]
    gradients = [
        torch.autograd.grad(sum((m * value).sum() for m, value in zip(mix, outputs, strict=True)), leaves)
        for outputs in (got, expected)
    ]
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    for value, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-11)


def test_gradcheck():
    hidden, weight, shift, targets = inputs()

    def all_scores(h, w, b):
        head = Head(weight=w, bias=b, scale=0.8, softcap=2.5)
        return tuple(score_tokens(h, head, targets, temperature=1.2, entropy=True, logits=True, chunk_elements=4 * V))

    assert torch.autograd.gradcheck(all_scores, (hidden, weight, shift))


def test_only_what_is_asked_for():
    hidden, weight, _, targets = inputs()
    got = score_tokens(hidden, Head(weight=weight), targets)
    assert (got.entropy, got.target_logit, got.log_normaliser) == (None, None, None)


def test_frozen_parts_get_no_gradient():
    hidden, weight, _, targets = inputs()
    score_tokens(hidden, Head(weight=weight.detach()), targets).logp.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_low_precision_input_is_accumulated_in_fp32():
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    low = score_tokens(hidden.bfloat16(), Head(weight=weight.bfloat16()), targets).logp
    assert low.dtype == torch.float32
    exact = naive(hidden.bfloat16().float(), weight.bfloat16().float(), None, targets, 1.0, None, 1.0)[0]
    torch.testing.assert_close(low, exact, rtol=0, atol=0.06)  # the products themselves are bf16


def test_extreme_logits_stay_finite():
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    hidden = (hidden.detach() * 1e4).requires_grad_()
    got = score_tokens(hidden, Head(weight=weight), targets, entropy=True)
    got.logp.sum().backward()
    assert bool(torch.isfinite(got.logp).all())
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())


_PEAK = """
import resource, torch
from preftune.policy.scoring import Head, score_tokens
torch.set_num_threads(1)
N, H, V = 4096, 16, 32768
hidden, weight = torch.randn(N, H, requires_grad=True), torch.randn(V, H)
targets = torch.randint(0, V, (N,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score_tokens(hidden, Head(weight=weight), targets, entropy=True).logp.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_peak_memory_is_a_few_chunks():
    """All logits would be 4096 * 32768 * 4 bytes = 512 MiB, a chunk is 64 MiB; entropy's gradient holds a few of them."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 350
