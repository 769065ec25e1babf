"""oneDNN replacements for CPU matrix products where PyTorch's default uses only part of the processor: half
of it in fp32, a seventh in bf16.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SMALL = 2**20
"""Multiplications of a product below which the call costs more than it saves."""
_KEPT_SHAPES = "64"
"""Shapes of products that oneDNN and PyTorch's layer above it keep code and scratch space for, half a MiB
each. They would keep 1024 of either; rows have ever new lengths, and a micro-batch needs some 24 shapes.
"""
_FEW = 12
"""The least of the three sizes of a bf16 product below which casting to fp32 costs more than it saves."""
_PIECE = 2**23
"""Numbers in fp32, of inputs or outputs, that a bf16 product holds at once."""


def onednn_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [N, K] @ right [K, M] + bias [M] of oneDNN, in fp32; either may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


@cache
def leaves_half_idle() -> bool:
    """Whether PyTorch multiplies with MKL on a processor with AVX-512 that is not Intel's: MKL runs its AVX2
    code there.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "GenuineIntel" not in processor


def has_bf16() -> bool:
    """Whether oneDNN has bf16 products for this processor (on x86: one with AVX-512). PyTorch's own are a
    slow loop.
    """
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def product_in_fp32(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [N, K] @ right [K, M] + bias [M] of bf16, summed in fp32 and rounded to bf16 once, as bf16
    hardware does.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    found, by_rows = left.new_empty(rows, columns), rows > columns
    whole, bias = (right if by_rows else left).float(), None if bias is None else bias.float()
    step = max(1, _PIECE // (inner + min(rows, columns)))
    for start in range(0, max(rows, columns), step):
        part = slice(start, start + step)
        if by_rows:
            product, into, added = left[part].float() @ whole, found[part], bias
        else:
            product, into, added = (
                whole @ right[:, part].float(),
                found[:, part],
                None if bias is None else bias[part],
            )
        into.copy_(product if added is None else product.add_(added))
    return found


@cache
def use_fast_products() -> torch.library.Library | None:
    """From now on this process multiplies with oneDNN where MKL would leave half of the processor idle in
    fp32, and in fp32 where the processor has no bf16 products.

    It replaces PyTorch's kernels of `mm` and `addmm` on CPUs, so that the forward and the backward of every
    model have it. The choice hangs on the processor and on shapes, never on a measured time: a run that is
    resumed computes the same bits. On any processor oneDNN keeps what it prepared for few shapes only.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read when oneDNN is first used
        os.environ.setdefault(name, _KEPT_SHAPES)
    if leaves_half_idle():
        return replace_products(onednn_product, is_large)
    return None if has_bf16() else replace_products(product_in_fp32, is_worth_casting)


def replace_products(
    product: Callable[..., Tensor], is_for: Callable[[Tensor, Tensor], bool]
) -> torch.library.Library:
    """`mm` and `addmm` on CPUs are from now on this product of two matrices, and a row to be added, where it
    is for them.
    """
    plain, plain_sum = (torch.library.get_kernel(name, "CPU") for name in ("aten::mm", "aten::addmm"))

    def mm(keys: Any, left: Tensor, right: Tensor) -> Tensor:
        return product(left, right) if is_for(left, right) else plain.call_boxed(keys, left, right)

    def addmm(
        keys: Any, total: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> Tensor:
        alike = (
            total.ndim == 1
            and total.dtype == left.dtype
            and len(total) == right.shape[-1]
            and beta == 1
            and alpha == 1
        )
        if alike and is_for(left, right):
            return product(left, right, total)
        return plain_sum.call_boxed(keys, total, left, right, beta=beta, alpha=alpha)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns that a kernel is replaced
        for name, kernel in (("mm", mm), ("addmm", addmm)):
            library.impl(name, kernel, "CPU", with_keyset=True, allow_override=True)
    return library


def is_large(left: Tensor, right: Tensor) -> bool:
    """Whether an fp32 product is large enough for oneDNN to be faster."""
    return _are_matrices(left, right, torch.float32) and left.numel() * right.shape[1] >= _SMALL


def is_worth_casting(left: Tensor, right: Tensor) -> bool:
    """Whether a bf16 product takes longer than casting its inputs to fp32."""
    if not _are_matrices(left, right, torch.bfloat16) or left.numel() * right.shape[1] < _SMALL:
        return False
    return min(*left.shape, right.shape[1]) >= _FEW


def _are_matrices(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    """Let PyTorch's kernel raise its own error for inputs that it refuses."""
    return (
        left.dtype == right.dtype == dtype
        and left.ndim == right.ndim == 2
        and left.shape[1] == right.shape[0]
    )
