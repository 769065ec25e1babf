"""Products of oneDNN against fp64, and what becomes of those that it does not compute."""

import subprocess
import sys

import pytest
import torch

from preftune.policy.products import leaves_half_idle, onednn_product, use_fast_products

ROWS, INNER, COLUMNS = 65, 129, 300
SHAPES = {
    "as they lie": lambda: (torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)),
    "left transposed": lambda: (torch.randn(INNER, ROWS).t(), torch.randn(INNER, COLUMNS)),
    "right transposed": lambda: (torch.randn(ROWS, INNER), torch.randn(COLUMNS, INNER).t()),
    "one number for all": lambda: (torch.randn(1, 1).expand(ROWS, INNER), torch.randn(INNER, COLUMNS)),
    "one row for all": lambda: (torch.randn(1, INNER).expand(ROWS, INNER), torch.randn(INNER, 1).expand(INNER, COLUMNS)),
    "every second": lambda: (torch.randn(ROWS, 2 * INNER)[:, ::2], torch.randn(2 * INNER, COLUMNS)[::2]),
}
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
needs_idle = pytest.mark.skipif(not leaves_half_idle(), reason="PyTorch's own product uses this processor well")


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


@needs_idle
def test_model_has_them_forward_and_backward():
    use_fast_products()
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(INNER, COLUMNS), torch.randn(ROWS, INNER, requires_grad=True)
    with torch.profiler.profile() as profiler:
        layer(inputs).square().sum().backward()
    ran = {event.key: event.count for event in profiler.key_averages()}
    assert ran["mkldnn::_linear_pointwise"] == 3, "the output, and the gradients of the inputs and of the weight"
    assert inputs.grad is not None and layer.weight.grad is not None
    twin, copy = torch.nn.Linear(INNER, COLUMNS).double(), inputs.detach().double().requires_grad_()
    twin.load_state_dict(layer.state_dict())
    twin(copy).square().sum().backward()
    for ours, exact in ((inputs.grad, copy.grad), (layer.weight.grad, twin.weight.grad)):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)


@needs_idle
def test_the_rest_is_pytorchs_own():
    """Other types, small products, weighted sums and wrong shapes."""
    use_fast_products()
    torch.manual_seed(0)
    big = torch.randn(128, 128)
    for dtype in (torch.float64, torch.bfloat16):
        assert (big.to(dtype) @ big.to(dtype)).dtype == dtype
    assert (torch.tensor([[1.0, 2.0]]) @ torch.tensor([[3.0], [4.0]])).tolist() == [[11.0]]
    weighted = torch.addmm(torch.ones(128), big, big, beta=2.0, alpha=3.0)
    torch.testing.assert_close(weighted, 2.0 + 3.0 * (big @ big), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(torch.addmm(big, big, big), big + big @ big, rtol=1e-4, atol=1e-3)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.randn(2000, 3000) @ torch.randn(2000, 3000)


@needs_idle
def test_loading_a_model_replaces_them_and_importing_does_not(tiny_folder):
    """A program that only imports the library multiplies as it did; and replacing says nothing."""
    code = """
import sys, torch, warnings
warnings.simplefilter("error")
from preftune.policy.load import LoadOptions, load_model
def kinds():
    with torch.profiler.profile() as profiler:
        torch.ones(256, 256) @ torch.ones(256, 256)
    return {event.key for event in profiler.key_averages()}
assert "mkldnn::_linear_pointwise" not in kinds()
load_model(sys.argv[1], LoadOptions())
assert "mkldnn::_linear_pointwise" in kinds()
"""
    subprocess.run([sys.executable, "-c", code, str(tiny_folder)], check=True)


@needs_onednn
def test_rows_of_new_lengths_do_not_fill_the_memory():
    """oneDNN and PyTorch's layer above it keep what they prepared for a shape: 276 MiB for these, if nobody stops them."""
    code = """
import re, torch
from preftune.policy.products import onednn_product, use_fast_products
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
    grown = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 150, f"{grown:.0f} MiB"
