"""Matrix products in fp32 on processors of which PyTorch's own product uses half."""

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SMALL = 2**20
"""Multiplications of a product below which the call costs more than it saves."""
_KEPT_SHAPES = "64"
"""Shapes of products that oneDNN and PyTorch's layer above it keep code and scratch space for, half a MiB each. They would keep
1024 of either; rows have ever new lengths, and a micro-batch needs some 24 shapes."""


def onednn_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [N, K] @ right [K, M] + bias [M] of oneDNN, in fp32; either may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


def leaves_half_idle() -> bool:
    """Whether PyTorch multiplies with MKL on a processor with AVX-512 that is not Intel's: MKL runs its AVX2 code there."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "GenuineIntel" not in processor


@cache
def use_fast_products() -> torch.library.Library | None:
    """From now on this process multiplies fp32 matrices with oneDNN where MKL would leave half of the processor idle.

    It replaces PyTorch's kernels of `mm` and `addmm` on CPUs, so that the forward and the backward of every model have it. The
    choice hangs on the processor's maker and on shapes, never on a measured time: a run that is resumed computes the same bits.
    On any processor oneDNN, which has bf16 products everywhere, keeps what it prepared for few shapes only.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read when oneDNN is first used
        os.environ.setdefault(name, _KEPT_SHAPES)
    if not leaves_half_idle():
        return None
    plain, plain_sum = (torch.library.get_kernel(name, "CPU") for name in ("aten::mm", "aten::addmm"))

    def mm(keys: Any, left: Tensor, right: Tensor) -> Tensor:
        if _is_large(left, right):
            return onednn_product(left, right)
        return plain.call_boxed(keys, left, right)

    def addmm(keys: Any, total: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if _is_large(left, right) and total.ndim == 1 and beta == 1 and alpha == 1:
            return onednn_product(left, right, total)
        return plain_sum.call_boxed(keys, total, left, right, beta=beta, alpha=alpha)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that a kernel is replaced
        for name, kernel in (("mm", mm), ("addmm", addmm)):
            library.impl(name, kernel, "CPU", with_keyset=True, allow_override=True)
    return library


def _is_large(left: Tensor, right: Tensor) -> bool:
    if left.dtype != torch.float32 or left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        return False  # what PyTorch's kernel refuses, it is to say so itself
    return left.numel() * right.shape[1] >= _SMALL
