"""The cost model of docs/scaling.md: its formulas, what is measured beside them here, and what they say of 8B
and 70B.

    python benchmarks/cost_model.py [--json]

Measured on decoders of the Llama family with random weights: bytes that PyTorch keeps for the backward pass
per position and layer (storages that autograd saves, weights aside), and entries that two gloo processes
gather and sum in one micro-batch of a model in shards. The rest follows from the formulas. Nothing here
depends on the clock.
"""

import argparse
import json
import multiprocessing
import os
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from preftune.model.attention_segments import SEGMENTS
from preftune.model.layout import LayoutOptions, collate
from preftune.model.load import make_lean
from preftune.model.policy import Policy, in_shards, score
from preftune.model.shard import ShardOptions
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder of the Llama family. Widths in entries: of the residual stream, of keys (as of values), of
    the MLP.
    """

    layers: int
    hidden: int
    keys: int
    inner: int
    vocabulary: int
    tied: bool = False

    @property
    def layer_parameters(self) -> int:
        return 2 * self.hidden * (self.hidden + self.keys) + 3 * self.hidden * self.inner + 2 * self.hidden

    @property
    def rest(self) -> int:
        """Embeddings, head and the last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.rest

    def kept(self, precision: str, checkpointing: bool = False, cpu: bool = True) -> float:
        """Bytes per position and layer that wait for the backward pass.

        fp32: 4 (7 hidden + 2 keys + 2 inner): input and output of two norms; queries, keys, values; the
            output of
        attention and its copy in a row; gate and up. bf16 under autocast: 28 hidden + 8 keys + 6
        inner: what norms keep and what attention reads and writes (on a CPU) in fp32; the rest in bf16, the
            norms' outputs once for
        each of the five products that read them. Elsewhere than on a CPU norms keep their normalized input
        too, 8 hidden more. Completions that share a prompt have a copy of its keys and values each, which is
        not in it. Checkpointed: the layer's input.
        """
        if checkpointing:
            return 4.0 * self.hidden
        norms = 0.0 if cpu else 8.0 * self.hidden
        if precision == "fp32":
            return norms + 4.0 * (7 * self.hidden + 2 * self.keys + 2 * self.inner)
        return norms + 28.0 * self.hidden + 8 * self.keys + 6 * self.inner


BENCH = Decoder(layers=2, hidden=512, keys=128, inner=1536, vocabulary=1000, tied=True)
SHAPES = {
    "SmolLM2 135M": Decoder(layers=30, hidden=576, keys=192, inner=1536, vocabulary=49152, tied=True),
    "Llama 3.1 8B": Decoder(layers=32, hidden=4096, keys=1024, inner=14336, vocabulary=128256),
    "Llama 3.1 70B": Decoder(layers=80, hidden=8192, keys=1024, inner=28672, vocabulary=128256),
}


def policy_of(shape: Decoder, precision: str, **more: Any) -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.keys // 64,
        tie_word_embeddings=shape.tied,
    )
    config._attn_implementation = SEGMENTS
    model = LlamaForCausalLM(config).eval()
    make_lean(model)  # as one that is loaded
    return Policy(model=model, precision=precision, sharing="flat", sharing_reason="", **more)


def group(tokens: int) -> Group:
    ids = (np.arange(tokens) % 900 + 5).astype(np.int32)
    return Group(
        prompt=ids[: tokens // 2],
        completions=(ids[tokens // 2 :], ids[tokens // 2 :]),
        pairs=((0, 1),),
        origin="0",
    )


def kept_bytes(precision: str, checkpointing: bool) -> float:
    """Measured, per position and layer: the difference of decoders of four and of two layers, so that the
    head falls out.
    """
    totals = []
    for layers in (2, 4):
        policy = policy_of(
            Decoder(**{**vars(BENCH), "layers": layers}),
            precision,
            kept_positions=0 if checkpointing else None,
        )
        batch = collate([group(400)], LayoutOptions(), "flat")
        saved: dict[int, torch.UntypedStorage] = {}
        weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

        def keep(tensor: torch.Tensor, weights=weights, saved=saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage  # held, so that no later one lies at its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            score(policy, batch)
        low = (
            sum(p.numel() for p in policy.model.model.layers.parameters()) * 2
            if precision == "bf16" and not checkpointing
            else 0
        )
        totals.append((sum(storage.nbytes() for storage in saved.values()) - low) / batch.num_positions)
    return (totals[1] - totals[0]) / 2


def collectives(reshard: bool, rank: int, port: int, answer: Any) -> None:
    """In one of two processes: entries that a micro-batch of a model in shards gathers and sums."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    policy = in_shards(
        policy_of(BENCH, "fp32"), ShardOptions(mode="full", reshard=reshard), torch.device("cpu")
    )
    batch = collate([group(60)], LayoutOptions(), "flat")

    def step() -> None:
        policy.run(lambda: (score(policy, batch).logp.sum(),))[0].backward()

    step()  # what is made once
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    moved: Counter[str] = Counter()
    for event in profiler.events():
        if event.name in MOVES:
            moved[MOVES[event.name]] += max(int(np.prod(shape)) for shape in event.input_shapes if shape)
    answer.put(dict(moved))
    dist.barrier()
    dist.destroy_process_group()


MOVES = {"c10d::_allgather_base_": "gathered", "c10d::_reduce_scatter_base_": "summed"}


def moved_by_two(reshard: bool) -> dict[str, int]:
    context, port = multiprocessing.get_context("spawn"), free_port()
    answer = context.Queue()
    workers = [context.Process(target=collectives, args=(reshard, rank, port, answer)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [answer.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0] == found[1], "both processes take part in the same collectives"
    return found[0]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def per_device(shape: Decoder, devices: int) -> dict[str, float]:
    """GiB on each of some GPUs in shards, all weights training in bf16, no reference beside; and one
    micro-batch.
    """
    unit = (
        2 * shape.layer_parameters * 2 + 4 * shape.rest
    )  # two layers in bf16, the rest in fp32, while they are gathered
    kept = shape.kept("bf16", cpu=False)
    return {
        "state": 16 * shape.parameters / devices / 2**30,
        "gathered": unit / 2**30,
        "kept per 1000 positions": 1000 * shape.layers * kept / 2**30,
        "checkpointed": (1000 * shape.layers * shape.kept("bf16", True) + 1000 * kept) / 2**30,
    }


def measure() -> dict[str, Any]:
    kept = {
        f"{precision}{', checkpointed' if checkpointing else ''}": {
            "formula": BENCH.kept(precision, checkpointing),
            "measured": kept_bytes(precision, checkpointing),
        }
        for precision in ("fp32", "bf16")
        for checkpointing in (False, True)
    }
    layers, whole = BENCH.layers * BENCH.layer_parameters, BENCH.parameters
    moved = {}
    for reshard in (True, False):
        found = moved_by_two(reshard)
        moved[f"reshard {str(reshard).lower()}"] = {
            "gathered": {
                "formula": 2 * whole if reshard else 2 * whole - layers,
                "measured": found["gathered"],
            },
            "summed": {"formula": whole, "measured": found["summed"]},
        }
    devices = {name: {str(n): per_device(shape, n) for n in (1, 8, 64)} for name, shape in SHAPES.items()}
    return {"kept": kept, "moved": moved, "per_device": devices}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    found = measure()
    if settings.json:
        print(json.dumps(found))
        return
    for name, one in found["kept"].items():
        print(
            f"kept, {name}: {one['measured']:.0f} bytes per position and layer, by the formula {one['formula']:.0f} "
            f"({one['measured'] / one['formula']:.3f})"
        )
    for name, moves in found["moved"].items():
        for move, one in moves.items():
            print(
                f"{move}, {name}: {one['measured']} entries, by the formula {one['formula']} "
                f"({one['measured'] / one['formula']:.3f})"
            )
    for name, sizes in found["per_device"].items():
        for devices, one in sizes.items():
            print(
                f"{name} on {devices}: " + ", ".join(f"{what} {size:.2f} GiB" for what, size in one.items())
            )


if __name__ == "__main__":
    main()
