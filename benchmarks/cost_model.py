"""The cost model of docs/scaling.md: its formulas, what is measured beside them here, and what they say of 8B and 70B.

    python benchmarks/cost_model.py [--json]

Measured on decoders of the Llama family with random weights: bytes that PyTorch keeps for the backward pass per position and layer
(storages that autograd saves, weights aside), and bytes that two gloo processes hand to their collectives in one step of a model in
shards. The rest follows from the formulas. Nothing here depends on the clock.
"""

import argparse
import json
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

from preftune.data.pack import LayoutOptions, collate
from preftune.policy.policy import Policy, in_shards, score, use_gradient_checkpointing
from preftune.policy.segments import SEGMENTS
from preftune.policy.shard import ShardOptions
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder of the Llama family. Widths in entries: of the residual stream, of keys (as of values), of the MLP."""

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

    def kept(self, precision: str, checkpointing: bool = False) -> float:
        """Bytes per position and layer that wait for the backward pass.

        fp32: 4 (9 hidden + 2 keys + 4 inner): input, normalised input and output of two norms; queries, keys, values; the output of
        attention and its copy in a row; gate, its activation, up, their product. bf16 under autocast: 26 hidden + 8 keys + 8
        inner: the norms' inputs and what attention reads (on a CPU) in fp32, the rest in bf16. Checkpointed: the layer's input.
        """
        if checkpointing:
            return 4.0 * self.hidden
        if precision == "fp32":
            return 4.0 * (9 * self.hidden + 2 * self.keys + 4 * self.inner)
        return 26.0 * self.hidden + 8 * self.keys + 8 * self.inner


BENCH = Decoder(layers=2, hidden=512, keys=128, inner=1536, vocabulary=1000, tied=True)
SHAPES = {
    "SmolLM2 135M": Decoder(layers=30, hidden=576, keys=192, inner=1536, vocabulary=49152, tied=True),
    "Llama 3.1 8B": Decoder(layers=32, hidden=4096, keys=1024, inner=14336, vocabulary=128256),
    "Llama 3.1 70B": Decoder(layers=80, hidden=8192, keys=1024, inner=28672, vocabulary=128256),
}


def policy_of(shape: Decoder, precision: str) -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64, num_key_value_heads=shape.keys // 64, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    config._attn_implementation = SEGMENTS
    return Policy(model=LlamaForCausalLM(config).eval(), precision=precision, sharing="flat", sharing_reason="")


def group(tokens: int) -> Group:
    ids = (np.arange(tokens) % 900 + 5).astype(np.int32)
    return Group(prompt=ids[: tokens // 2], completions=(ids[tokens // 2 :], ids[tokens // 2 :]), pairs=((0, 1),), origin="0")


def kept_bytes(precision: str, checkpointing: bool) -> float:
    """Measured, per position and layer: the difference of decoders of four and of two layers, so that the head falls out."""
    totals = []
    for layers in (2, 4):
        policy = policy_of(Decoder(**{**vars(BENCH), "layers": layers}), precision)
        if checkpointing:
            use_gradient_checkpointing(policy.model)
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
        low = sum(p.numel() for p in policy.model.model.layers.parameters()) * 2 if precision == "bf16" and not checkpointing else 0
        totals.append((sum(storage.nbytes() for storage in saved.values()) - low) / batch.num_positions)
    return (totals[1] - totals[0]) / 2


def shards_bytes(precision: str, reshard: bool, rank: int, size: int, port: int, answer: Any) -> None:
    """In one of several processes: what a step of two micro-batches hands to collectives."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    policy = policy_of(BENCH, precision)
    policy = in_shards(policy, ShardOptions(mode="full", reshard=reshard), torch.device("cpu"))
    batch = collate([group(60)], LayoutOptions(), "flat")
    score(policy, batch).logp.sum().backward()  # what is made once
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(2):
            score(policy, batch).logp.sum().backward()
    sent: Counter[str] = Counter()
    for event in profiler.events():
        if event.name.startswith("c10d::"):
            sent[event.name] += sum(int(np.prod(shape)) for shape in event.input_shapes[:1] if shape)
    answer.put((rank, dict(sent)))
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    for precision in ("fp32", "bf16"):
        for checkpointing in (False, True):
            print(precision, checkpointing, kept_bytes(precision, checkpointing), BENCH.kept(precision, checkpointing))
    context = torch.multiprocessing.get_context("spawn")
    answer = context.Queue()
    port = free_port()
    workers = [context.Process(target=shards_bytes, args=("fp32", True, rank, 2, port, answer)) for rank in range(2)]
    [w.start() for w in workers]
    print(answer.get(), answer.get())
    [w.join() for w in workers]
    print(BENCH.parameters)
