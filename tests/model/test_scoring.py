"""The log-prob operation against plain log-softmax: values, gradients, every transform of the logits, memory."""

import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from preftune.errors import ModelError
from preftune.model.scoring import Head, HeadScores, score_tokens

N, H, V = 13, 7, 29
OTHER_H = 5  # the reference may be narrower than the policy
ALL = frozenset(HeadScores._fields)
FROZEN = {"log_collision", "ref_logp", "ref_entropy_share"}
LOGITS = frozenset({"target_logit", "log_normalizer"})


def inputs(dtype=torch.float64, bias=True):
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, H, generator=random, dtype=dtype).requires_grad_()
    weight = torch.randn(V, H, generator=random, dtype=dtype).requires_grad_()
    shift = torch.randn(V, generator=random, dtype=dtype).requires_grad_() if bias else None
    return hidden, weight, shift, torch.randint(0, V, (N,), generator=random)


def other_model(dtype=torch.float64, softcap: float | None = 2.5):
    """The reference: hidden states and head, as leaves that must stay without gradient."""
    random = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, OTHER_H, generator=random, dtype=dtype).requires_grad_()
    weight = torch.randn(V, OTHER_H, generator=random, dtype=dtype).requires_grad_()
    shift = torch.randn(V, generator=random, dtype=dtype).requires_grad_()
    return hidden, Head(weight=weight, bias=shift, scale=0.9, softcap=softcap)


def plain_logits(hidden, head, temperature):
    z = hidden @ head.weight.t() + (0 if head.bias is None else head.bias)
    z = z * head.scale
    return (head.softcap * torch.tanh(z / head.softcap) if head.softcap else z) / temperature


def naive(hidden, head, targets, temperature, reference=None) -> dict[str, torch.Tensor]:
    """The definitions, over all logits at once."""
    z = plain_logits(hidden, head, temperature)
    logp = z.log_softmax(-1)
    p = logp.exp()

    def at_target(values):
        return values.gather(1, targets[:, None]).squeeze(1)

    found = {
        "logp": at_target(logp),
        "entropy": -(p * logp).sum(-1),
        "target_logit": at_target(z),
        "log_normalizer": z.logsumexp(-1),
        "log_collision": (2 * z).logsumexp(-1) - 2 * z.logsumexp(-1),
    }
    if reference is not None:
        logq = plain_logits(*reference, temperature).log_softmax(-1)
        q = logq.exp()
        found |= {
            "ref_logp": at_target(logq),
            "ref_entropy_share": -(q * logq).sum(-1) / math.log(V),
            "kl_from_ref": (q * (logq - logp)).sum(-1),
            "kl_to_ref": (p * (logp - logq)).sum(-1),
        }
    return found


def gradients(found: dict[str, torch.Tensor], leaves):
    """Of a random mixture of all scores that carry a gradient."""
    random = torch.Generator().manual_seed(4)
    mix = {name: torch.randn(N, generator=random, dtype=torch.float64) for name in HeadScores._fields}
    total = sum((mix[name] * values).sum() for name, values in found.items() if name not in FROZEN)
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("scale", "softcap", "temperature"),
    [(1.0, None, 1.0), (0.5, None, 0.7), (1.0, 3.0, 1.0), (1.3, 2.0, 1.7)],
)
@pytest.mark.parametrize("chunk", [1, 6 * V, 100 * V])
@pytest.mark.parametrize(
    "wanted", [ALL, ALL - {name for name in ALL if "ref" in name}], ids=["all", "no reference"]
)
def test_equals_the_definition(bias, scale, softcap, temperature, chunk, wanted):
    hidden, weight, shift, targets = inputs(bias=bias)
    head = Head(weight=weight, bias=shift, scale=scale, softcap=softcap)
    reference = other_model() if wanted == ALL else None
    got = score_tokens(
        hidden,
        head,
        targets,
        wanted=wanted,
        reference=reference,
        temperature=temperature,
        chunk_elements=chunk,
    )
    expected = naive(hidden, head, targets, temperature, reference)
    assert expected.keys() == wanted
    leaves = [leaf for leaf in (hidden, weight, shift) if leaf is not None]
    for name, values in expected.items():
        torch.testing.assert_close(getattr(got, name), values, rtol=1e-12, atol=1e-12)
    mine = gradients({name: getattr(got, name) for name in wanted}, leaves)
    for value, correct in zip(mine, gradients(expected, leaves), strict=True):
        torch.testing.assert_close(value, correct, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", sorted(ALL - FROZEN))
def test_each_score_alone(name):
    """Each gradient by itself, and nothing beside it is there."""
    hidden, weight, shift, targets = inputs()
    head = Head(weight=weight, bias=shift, scale=0.8, softcap=2.5)
    got = score_tokens(
        hidden, head, targets, wanted=frozenset({name}), reference=other_model(), temperature=1.2
    )
    assert {other for other in ALL if getattr(got, other) is not None} == {name, "logp"}
    expected = naive(hidden, head, targets, 1.2, other_model())[name]
    leaves = (hidden, weight, shift)
    for value, correct in zip(
        torch.autograd.grad(getattr(got, name).square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(value, correct, rtol=1e-10, atol=1e-11)


def test_gradcheck():
    hidden, weight, shift, targets = inputs()

    def all_scores(h, w, b):
        head = Head(weight=w, bias=b, scale=0.8, softcap=2.5)
        got = score_tokens(
            h, head, targets, wanted=ALL, reference=other_model(), temperature=1.2, chunk_elements=8 * V
        )
        return tuple(getattr(got, name) for name in sorted(ALL - FROZEN))

    assert torch.autograd.gradcheck(all_scores, (hidden, weight, shift))


def test_only_what_is_asked_for():
    hidden, weight, _, targets = inputs()
    got = score_tokens(hidden, Head(weight=weight), targets)
    assert [getattr(got, name) for name in HeadScores._fields[1:]] == [None] * (len(ALL) - 1)


def test_frozen_parts_get_no_gradient():
    hidden, weight, _, targets = inputs()
    score_tokens(hidden, Head(weight=weight.detach()), targets).logp.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_the_reference_and_the_collision_carry_no_gradient():
    hidden, weight, shift, targets = inputs()
    ref_hidden, ref_head = other_model()
    got = score_tokens(
        hidden, Head(weight=weight, bias=shift), targets, wanted=ALL, reference=(ref_hidden, ref_head)
    )
    assert {name for name in ALL if not getattr(got, name).requires_grad} == FROZEN
    sum(getattr(got, name).sum() for name in ALL - FROZEN).backward()
    assert (ref_hidden.grad, ref_head.weight.grad, ref_head.bias.grad) == (None, None, None)
    assert all(leaf.grad is not None for leaf in (hidden, weight, shift))


def test_a_policy_that_is_its_reference():
    """Both divergences are exactly 0 there, and so is their gradient: it is their smallest value."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        hidden, weight, shift, targets = inputs(dtype)
        head = Head(weight=weight, bias=shift, softcap=4.0)
        wanted = frozenset({"kl_from_ref", "kl_to_ref", "ref_logp"})
        got = score_tokens(hidden, head, targets, wanted=wanted, reference=(hidden, head))
        assert torch.equal(got.ref_logp, got.logp)
        for kl in (got.kl_from_ref, got.kl_to_ref):
            assert bool((kl == 0).all())
            for gradient in torch.autograd.grad(kl.sum(), (hidden, weight, shift), retain_graph=True):
                assert bool((gradient == 0).all())


def test_known_distributions():
    """Policy (1/2, 1/4, 1/4), reference uniform on three tokens: everything can be worked out by hand."""
    hidden = torch.ones(1, 1, dtype=torch.float64)
    head = Head(weight=torch.tensor([[0.5], [0.25], [0.25]], dtype=torch.float64).log())
    uniform = (hidden, Head(weight=torch.zeros(3, 1, dtype=torch.float64)))
    got = score_tokens(hidden, head, torch.tensor([0]), wanted=ALL, reference=uniform)
    assert got.log_collision.item() == pytest.approx(math.log(3 / 8), rel=1e-14)
    assert got.ref_logp.item() == pytest.approx(-math.log(3), rel=1e-14)
    assert got.ref_entropy_share.item() == pytest.approx(1.0, rel=1e-14)
    assert got.kl_to_ref.item() == pytest.approx(
        math.log(3) - 1.5 * math.log(2), rel=1e-13
    )  # log V minus the entropy
    assert got.kl_from_ref.item() == pytest.approx(-math.log(3) + (5 / 3) * math.log(2), rel=1e-13)
    backwards = score_tokens(hidden, uniform[1], torch.tensor([0]), wanted=ALL, reference=(hidden, head))
    assert backwards.kl_to_ref.item() == pytest.approx(got.kl_from_ref.item(), rel=1e-13)
    assert backwards.ref_entropy_share.item() == pytest.approx(1.5 * math.log(2) / math.log(3), rel=1e-13)


def test_another_vocabulary_is_refused():
    hidden, weight, _, targets = inputs()
    small = (hidden, Head(weight=weight[:-1]))
    with pytest.raises(ModelError, match=r"vocabulary.*got 28 tokens; expected 29"):
        score_tokens(hidden, Head(weight=weight), targets, wanted=frozenset({"kl_to_ref"}), reference=small)


def test_callers_say_what_exists():
    hidden, weight, _, targets = inputs()
    with pytest.raises(AssertionError, match="no such scores"):
        score_tokens(hidden, Head(weight=weight), targets, wanted=frozenset({"entropie"}))
    with pytest.raises(AssertionError, match="need a reference"):
        score_tokens(hidden, Head(weight=weight), targets, wanted=frozenset({"kl_to_ref"}))


def test_low_precision_input_is_accumulated_in_fp32():
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    ref_hidden, ref_head = other_model(torch.float32)
    reference = (ref_hidden.bfloat16(), Head(weight=ref_head.weight.bfloat16(), scale=0.9, softcap=2.5))
    low = score_tokens(
        hidden.bfloat16(), Head(weight=weight.bfloat16()), targets, wanted=ALL, reference=reference
    )
    rounded = (reference[0].float(), Head(weight=reference[1].weight.float(), scale=0.9, softcap=2.5))
    exact = naive(hidden.bfloat16().float(), Head(weight=weight.bfloat16().float()), targets, 1.0, rounded)
    for name, values in exact.items():
        assert getattr(low, name).dtype == torch.float32
        torch.testing.assert_close(
            getattr(low, name), values, rtol=0, atol=0.06
        )  # the products themselves are bf16


def test_autocast_reaches_both_models():
    """The products are bf16, forward and backward, although nothing that comes in is."""
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    ref_hidden, ref_head = other_model(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = score_tokens(hidden, Head(weight=weight), targets, wanted=ALL, reference=(ref_hidden, ref_head))
    low = Head(
        weight=ref_head.weight.bfloat16(), bias=ref_head.bias, scale=ref_head.scale, softcap=ref_head.softcap
    )
    head, reference = Head(weight=weight.bfloat16()), (ref_hidden.bfloat16(), low)
    same = score_tokens(hidden.bfloat16(), head, targets, wanted=ALL, reference=reference)
    for name in ALL:
        assert torch.equal(getattr(got, name), getattr(same, name)), name
    for name in ALL - FROZEN:
        mine, other = (
            torch.autograd.grad(getattr(s, name).sum(), hidden, retain_graph=True)[0] for s in (got, same)
        )
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2)


def test_extreme_logits_stay_finite():
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    hidden = (hidden.detach() * 1e4).requires_grad_()
    ref_hidden, ref_head = other_model(torch.float32, softcap=None)
    reference = (-1e4 * ref_hidden, ref_head)
    got = score_tokens(hidden, Head(weight=weight), targets, wanted=ALL, reference=reference)
    sum(getattr(got, name).sum() for name in ALL - FROZEN).backward()
    assert all(bool(torch.isfinite(values).all()) for values in got)
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())


@pytest.mark.parametrize(("count", "products"), [(12, 3), (13, 4)])
def test_few_tokens_are_multiplied_once(count, products):
    """Forward, and backward into hidden states and head; more than two chunks are multiplied once more."""
    hidden, weight = torch.randn(count, 4, requires_grad=True), torch.randn(V, 4, requires_grad=True)
    targets = torch.arange(count) % V
    with FlopCounterMode(display=False) as counter:
        logp = score_tokens(hidden, Head(weight=weight), targets, chunk_elements=6 * V).logp
        logp.sum().backward(retain_graph=True)
    assert counter.get_total_flops() == products * 2 * count * 4 * V
    first = weight.grad
    weight.grad = None
    logp.sum().backward()  # what was kept is still there
    assert first is not None and torch.equal(first, weight.grad)


_PEAK = r"""
import re, torch
from preftune.model.scoring import Head, score_tokens
torch.set_num_threads(1)
def peak():  # MiB; getrusage's would start at the peak of the parent
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
N, H, V = 4096, 16, 32768
hidden, weight = torch.randn(N, H, requires_grad=True), torch.randn(V, H)
targets = torch.randint(0, V, (N,))
reference = (torch.randn(N, H), Head(weight=torch.randn(V, H)))
before = peak()
got = score_tokens(hidden, Head(weight=weight), targets, wanted=frozenset({WANTED}), reference=reference)
sum(values.sum() for values in got if values is not None and values.requires_grad).backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("wanted", "most"), [({"logp"}, 256), ({"entropy"}, 450), ({"kl_from_ref", "kl_to_ref"}, 350)]
)
def test_peak_memory_is_a_few_chunks(wanted, most):
    """All logits of a model would be 4096 * 32768 * 4 bytes = 512 MiB, a chunk is 64 MiB, of both models
    together too.
    """
    script = _PEAK.replace("{WANTED}", repr(wanted))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < most


@pytest.mark.parametrize("chunk", [1, 4 * V, 100 * V])
@pytest.mark.parametrize(("scale", "softcap", "temperature"), [(1.0, None, 1.0), (0.7, 2.0, 0.6)])
@pytest.mark.parametrize("wanted", [frozenset(), LOGITS])
def test_few_passes_give_the_same(chunk, scale, softcap, temperature, wanted):
    """As on a GPU: the normalizer with the logit, and the softmax with the target, in a pass each."""
    hidden, weight, shift, targets = inputs()
    head = Head(weight=weight, bias=shift, scale=scale, softcap=softcap)
    for elements in (chunk, 100 * V):
        found = score_tokens(
            hidden,
            head,
            targets,
            wanted=wanted,
            temperature=temperature,
            chunk_elements=elements,
            few_passes=True,
        )
        expected = naive(hidden, head, targets, temperature)
        names = {"logp"} | wanted
        for name in names:
            torch.testing.assert_close(getattr(found, name), expected[name], rtol=1e-12, atol=1e-12)
        leaves = [hidden, weight, shift]
        mine = gradients({name: getattr(found, name) for name in names}, leaves)
        right = gradients({name: expected[name] for name in names}, leaves)
        for one, other in zip(mine, right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
