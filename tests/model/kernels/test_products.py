"""Products of oneDNN and of bf16 in fp32 against fp64, and what becomes of those that they are not for."""

import subprocess
import sys

import pytest
import torch

from preftune.model.kernels import products
from preftune.model.kernels.products import (
    has_bf16,
    leaves_half_idle,
    onednn_product,
    product_in_fp32,
    use_fast_products,
)
from tests.pinned import needs_pinned

ROWS, INNER, COLUMNS = 65, 129, 300
SHAPES = {
    "as they lie": lambda: (torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)),
    "left transposed": lambda: (torch.randn(INNER, ROWS).t(), torch.randn(INNER, COLUMNS)),
    "right transposed": lambda: (torch.randn(ROWS, INNER), torch.randn(COLUMNS, INNER).t()),
    "one number for all": lambda: (torch.randn(1, 1).expand(ROWS, INNER), torch.randn(INNER, COLUMNS)),
    "one row for all": lambda: (
        torch.randn(1, INNER).expand(ROWS, INNER),
        torch.randn(INNER, 1).expand(INNER, COLUMNS),
    ),
    "every second": lambda: (torch.randn(ROWS, 2 * INNER)[:, ::2], torch.randn(2 * INNER, COLUMNS)[::2]),
}
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN"
)


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_product_against_fp64(shape, biased):
    torch.manual_seed(0)
    left, right = SHAPES[shape]()
    bias = torch.randn(COLUMNS) if biased else None
    exact = left.double() @ right.double() + (0.0 if bias is None else bias.double())
    # Rounding of a sum of 129 products, whose size is that of the sum of their sizes.
    room = 1e-6 * (left.double().abs() @ right.double().abs()) + 1e-6
    assert ((onednn_product(left, right, bias).double() - exact).abs() <= room).all()


@pytest.mark.parametrize("shape", [*SHAPES, "more rows than columns"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("piece", [2**23, 2000])
def test_product_in_fp32_against_fp64(shape, biased, piece, monkeypatch):
    """Whole or in pieces: the sum of exact products, rounded to bf16 once."""
    monkeypatch.setattr(products, "_PIECE", piece)
    torch.manual_seed(0)
    left, right = (
        SHAPES[shape]() if shape in SHAPES else (torch.randn(COLUMNS, INNER), torch.randn(INNER, ROWS))
    )
    left, right = left.bfloat16(), right.bfloat16()
    bias = torch.randn(right.shape[1]).bfloat16() if biased else None
    exact = left.double() @ right.double() + (0.0 if bias is None else bias.double())
    found = product_in_fp32(left, right, bias)
    room = (
        1e-6 * (left.double().abs() @ right.double().abs()) + exact.abs() * 2**-8
    )  # half a unit in the last place of bf16
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= room).all()


CASES = {  # the product, what it is for, its type, how far gradients may be from those in fp64, relative to their norm
    "oneDNN": ("onednn_product", "is_large", "float32", 1e-5),
    "fp32": ("product_in_fp32", "is_worth_casting", "bfloat16", 1e-2),
}


def with_products(case: str, code: str) -> None:
    """Runs code in a process that has these products, whatever the processor; `calls` grows with each."""
    product, is_for, dtype, tolerance = CASES[case]
    start = f"""
import pytest, torch
from preftune.model.kernels import products
calls, dtype, tolerance = [], torch.{dtype}, {tolerance}
def counted(*inputs):
    calls.append([list(one.shape) for one in inputs])
    return products.{product}(*inputs)
library = products.replace_products(counted, products.{is_for})
torch.manual_seed(0)
"""
    subprocess.run([sys.executable, "-c", start + code], check=True)


@needs_onednn
@pytest.mark.parametrize("case", CASES)
def test_a_layer_has_them_forward_and_backward(case):
    code = """
layer, inputs = torch.nn.Linear(129, 300).to(dtype), torch.randn(65, 129, dtype=dtype, requires_grad=True)
twin, copy = torch.nn.Linear(129, 300).double(), inputs.detach().double().requires_grad_()
twin.load_state_dict(layer.state_dict())
layer(inputs).square().sum().backward()
assert calls == [[[65, 129], [129, 300], [300]], [[300, 65], [65, 129]], [[65, 300], [300, 129]]] or \
    calls == [[[65, 129], [129, 300], [300]], [[65, 300], [300, 129]], [[300, 65], [65, 129]]], calls
twin(copy).square().sum().backward()
for ours, exact in ((inputs.grad, copy.grad), (layer.weight.grad, twin.weight.grad)):
    assert ours.dtype == dtype and (ours.double() - exact).norm() < tolerance * exact.norm()
with torch.autocast("cpu", torch.bfloat16):  # the fp32 in which bf16 is multiplied is not cast back
    assert torch.nn.Linear(129, 300)(torch.randn(65, 129)).dtype == torch.bfloat16
"""
    with_products(case, code)


@needs_onednn
@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_pytorchs_own(case):
    """Other types, small products, weighted sums and wrong shapes."""
    code = """
big = torch.randn(128, 128, dtype=dtype)
others = {torch.float64, torch.bfloat16, torch.float32} - {dtype}
for other in others:
    assert (big.to(other) @ big.to(other)).dtype == other
assert (torch.tensor([[1.0, 2.0]], dtype=dtype) @ torch.tensor([[3.0], [4.0]], dtype=dtype)).tolist() == [[11.0]]
weighted = torch.addmm(torch.ones(128, dtype=dtype), big, big, beta=2.0, alpha=3.0)
assert not calls
close = {"rtol": tolerance, "atol": 1e2 * tolerance}
torch.testing.assert_close(weighted, 2.0 + 3.0 * (big @ big), **close)
torch.testing.assert_close(torch.addmm(big, big, big), big + big @ big, **close)
torch.testing.assert_close(torch.addmm(big[:1, 0], big, big), big[0, 0] + big @ big, **close)
assert calls == [[[128, 128], [128, 128]]] * 3
with pytest.raises(RuntimeError, match="cannot be multiplied"):
    torch.randn(2000, 3000, dtype=dtype) @ torch.randn(2000, 3000, dtype=dtype)
with pytest.raises(RuntimeError, match="must be a matrix"):
    torch.mm(torch.randn(2000, 3000, dtype=dtype), torch.randn(3000, dtype=dtype))
"""
    with_products(case, code)


@needs_pinned("torch")
def test_loading_a_model_replaces_them_and_importing_does_not(tiny_folder):
    """A program that only imports the library multiplies as it did; and replacing says nothing."""
    code = """
import sys, torch, warnings
warnings.simplefilter("error")
from preftune.model.kernels import products
from preftune.model.load import LoadOptions, load_model
products.leaves_half_idle, products.has_bf16 = (lambda: False), (lambda: False)  # as on such a processor
def kinds():
    with torch.profiler.profile() as profiler:
        torch.ones(256, 256, dtype=torch.bfloat16) @ torch.ones(256, 256, dtype=torch.bfloat16)
    return {event.key for event in profiler.key_averages()}
assert "aten::copy_" not in kinds()
load_model(sys.argv[1], LoadOptions())
assert "aten::copy_" in kinds()
"""
    subprocess.run([sys.executable, "-c", code, str(tiny_folder)], check=True)


def test_what_a_processor_needs():
    """One with AVX-512 multiplies bf16 with oneDNN, one without it has no fp32 to gain."""
    assert has_bf16() or not leaves_half_idle()
    assert (use_fast_products() is not None) == (leaves_half_idle() or not has_bf16())


@needs_onednn
def test_rows_of_new_lengths_do_not_fill_the_memory():
    """oneDNN and PyTorch's layer above it keep what they prepared for a shape: 276 MiB for these, if nobody
    stops them.
    """
    code = """
import re, torch
from preftune.model.kernels.products import onednn_product, use_fast_products
use_fast_products()
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
right = torch.ones(256, 512)
onednn_product(torch.ones(99, 256), right)
before = resident()
for rows in range(100, 500):
    onednn_product(torch.ones(rows, 256), right)
print(resident() - before)
"""
    grown = float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )
    assert grown < 150, f"{grown:.0f} MiB"
