"""Whether a replacement computes the same: equal in fp32, and in 16 bits no further from fp32 than the original."""

from collections.abc import Sequence

import torch
from torch import Tensor

_TIMES, _FLOOR = 3.0, 1e-3
"""How much further from the fp32 result than the original, and the error that counts as none."""


def row_errors(found: Tensor, truth: Tensor) -> Tensor:
    """|found - truth| / |truth| of each row. A few rows of a real model are a thousand times as large as the
    others and would hide an error in those if it were divided by the largest number.
    """
    apart = (found.float() - truth.float()).norm(dim=-1)
    return apart / truth.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)


def no_further(found: Sequence[Tensor], usual: Sequence[Tensor], truth: Sequence[Tensor]) -> str:
    """ "" if the tensors of a replacement in 16 bits are finite and their mean error from the fp32 result is at
    most three times that of the original; else what is wrong with them.
    """
    for mine, plain, exact in zip(found, usual, truth, strict=True):
        if not bool(mine.isfinite().all()):
            return "its numbers are not finite in bf16"
        error, allowed = (float(row_errors(one, exact).mean()) for one in (mine, plain))
        if not error <= _TIMES * allowed + _FLOOR:
            return f"in bf16 it is {error / max(allowed, 1e-9):.2g} times as far from fp32 as the original"
    return ""
