"""How near a step is to the least time that its arithmetic takes on this machine, and what takes the rest.

    python benchmarks/floor.py --data FILE [--pairs 8] [--precision fp32 bf16]
                               [--micro_batch_tokens 512 1024 2048] [--turns 3] [--json]

The floor is the operations that must be done (each prompt once, the head at scored tokens, attention between
positions that see each other; `preftune.model.cost`) over the rate of a plain matrix product, measured in the
same turn, once as the package multiplies and once as PyTorch does by itself. For each precision
and size of micro-batch: forward and backward of all pairs, without the optimizer, in turns; then one pass
under PyTorch's profiler, whose own cost is in it, by kind of operator.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pair_training
import torch
from torch.profiler import ProfilerActivity, profile

from preftune.model.cost import Shape, product_rate, work_of
from preftune.model.layout import LayoutOptions, collate, split_micro_batches
from preftune.model.load import LoadOptions, load_model, quiet_transformers, resolve_model
from preftune.model.policy import Policy, score
from preftune.model.proof import choose_sharing
from preftune.types import Group

KINDS = {  # operators of PyTorch by what they do
    "products": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "copies and casts": ("aten::copy_", "aten::cat"),
    "zeros": ("aten::fill_", "aten::zero_"),
}


def gradient(policy: Policy, groups: Sequence[Group], tokens: int) -> None:
    """As a run computes it, casts of the weights included."""
    layout, policy = LayoutOptions(micro_batch_tokens=tokens), replace(policy, kept_positions=tokens)
    with torch.autocast("cpu", enabled=False):
        for indices in split_micro_batches(groups, layout, policy.sharing):
            batch = collate([groups[i] for i in indices], layout, policy.sharing)
            (score(policy, batch, into_grad=True).logp.sum() / 1000).backward()


def timed(policy: Policy, groups: Sequence[Group], tokens: int) -> float:
    policy.model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    gradient(policy, groups, tokens)
    return time.perf_counter() - started


def pytorch_rate(precision: str) -> float:
    """Operations per second of PyTorch's own product: `preftune.model.kernels.products` replaces `mm` and
    leaves `bmm` as it is.
    """
    left, best = (
        torch.ones(1, 1024, 1024, dtype=torch.bfloat16 if precision == "bf16" else torch.float32),
        float("inf"),
    )
    for _ in range(4):
        started = time.perf_counter()
        torch.bmm(left, left)
        best = min(best, time.perf_counter() - started)
    return 2.0 * 1024**3 / best


def by_kind(policy: Policy, groups: Sequence[Group], tokens: int) -> dict[str, float]:
    """Shares of the profiled time."""
    policy.model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        gradient(policy, groups, tokens)
    kinds = {operator: kind for kind, operators in KINDS.items() for operator in operators}
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kinds.get(event.key, "everything else")] += event.self_cpu_time_total
    return {kind: value / spent.total() for kind, value in spent.most_common()}


def measure(settings: argparse.Namespace) -> list[dict[str, Any]]:
    model = load_model(resolve_model(settings.model), LoadOptions())
    settings.steps = 0
    groups = [pair_training.as_group(pair, i) for i, pair in enumerate(pair_training.read_pairs(settings))]
    work, sharing = work_of(Shape.of(model), groups), choose_sharing(model, True)[0]
    cases = [
        (precision, tokens) for precision in settings.precision for tokens in settings.micro_batch_tokens
    ]
    policies = {
        p: Policy(model=model, precision=p, sharing=sharing, sharing_reason="") for p in settings.precision
    }
    timed(policies[settings.precision[0]], groups[:2], 512)
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    floors: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    pytorch_floors: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in range(settings.turns):
        for precision, tokens in cases:
            product_rate.cache_clear()
            floors[precision, tokens].append(work.training / product_rate(torch.device("cpu"), precision))
            pytorch_floors[precision, tokens].append(work.training / pytorch_rate(precision))
            seconds[precision, tokens].append(timed(policies[precision], groups, tokens))
    return [
        {
            "precision": precision,
            "micro_batch_tokens": tokens,
            "seconds": float(np.median(seconds[precision, tokens])),
            "floor": float(np.median(floors[precision, tokens])),
            "gflop": work.training / 1e9,
            "mfu": float(
                np.median(np.array(floors[precision, tokens]) / np.array(seconds[precision, tokens]))
            ),
            "mfu_of_pytorch": float(
                np.median(np.array(pytorch_floors[precision, tokens]) / np.array(seconds[precision, tokens]))
            ),
            "kinds": by_kind(policies[precision], groups, tokens),
        }
        for precision, tokens in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--mix", choices=(*pair_training.MIXES, "mixed"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--micro_batch_tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--max_tokens", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    if (settings.data is None) == (settings.mix is None):
        parser.error("give --data FILE or --mix NAME")
    quiet_transformers()
    for found in measure(settings):
        if settings.json:
            print(json.dumps(found), flush=True)
            continue
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in found["kinds"].items())
        print(
            f"{found['precision']}, micro-batches of {found['micro_batch_tokens']}: {found['seconds']:.2f} s for "
            f"{found['gflop']:.0f} GFLOP, floor {found['floor']:.2f} s: {found['mfu']:.0%}, "
            f"{found['mfu_of_pytorch']:.0%} at the rate of PyTorch's own product; {kinds}",
            flush=True,
        )


if __name__ == "__main__":
    main()
