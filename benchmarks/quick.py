"""Whether a step costs more than it did, by what does not depend on the clock, against
benchmarks/baseline.json.

    python benchmarks/quick.py [--json] [--write]

Two layers of SmolLM2's width with random weights, groups whose lengths are drawn like those of short
dialogues (pairs) and of groups of 8, one step of several objectives. For each, relative to the committed
baseline:

    products    operations of matrix products, over those that must be done (each prompt once, the head at
    scored tokens) calls       operators that PyTorch was asked for
    kept        bytes kept for the backward pass, per position
    packing     positions computed over positions that hold a token

and modules imported by `preftune --help` and by what trains. Exit status 1 if anything is more than 5% worse.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from preftune.model.attention_segments import SEGMENTS
from preftune.model.cost import Shape, work_of
from preftune.model.layout import LayoutOptions
from preftune.model.load import make_lean
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_sharing
from preftune.objectives import OBJECTIVES, Objective
from preftune.train.anchors import Anchors
from preftune.train.batches import PackedContent, cut_step, make_score
from preftune.train.step import accumulate_gradient, couple_step, global_weight
from preftune.types import Group

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 1.05
CASES = {"dpo": 8, "bnf": 8, "sft": 8, "kto": 8, "rloo": 2}  # objective -> groups of a step


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=2)
    heads = dict(num_attention_heads=9, num_key_value_heads=3)
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
    config._attn_implementation = SEGMENTS
    model = LlamaForCausalLM(config).eval()
    make_lean(model)  # as one that is loaded
    return model


def groups_of(count: int, completions: int) -> list[Group]:
    random = np.random.default_rng(0)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(5, 40000, int(random.integers(low, high))).astype(np.int32)

    found = []
    for number in range(count):
        answers = tuple(ids(10, 90) for _ in range(completions))
        rewards = tuple(float(k % 3) for k in range(completions)) if completions > 2 else ()
        found.append(
            Group(
                prompt=ids(40, 260),
                completions=answers,
                pairs=() if rewards else ((0, 1),),
                rewards=rewards,
                labels=() if rewards else (1, -1),
                origin=str(number),
            )
        )
    return found


def measure(objective: Objective, groups: Sequence[Group], policy: Policy) -> dict[str, float]:
    """One gradient: forward, loss, backward."""
    layout = LayoutOptions()
    anchors = Anchors()
    if "ref_logp" in objective.needs:
        anchors = replace(anchors, reference=lambda part: score_groups(policy, part, layout))
        held = {g.origin: one for g, one in zip(groups, anchors.reference(groups), strict=True)}  # type: ignore[misc]
        anchors = replace(anchors, reference=lambda part: [held[g.origin] for g in part])
    pieces, score = cut_step(groups, objective.signal, policy, layout), make_score(policy, objective, anchors)
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that none of a later micro-batch lies at its place
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        FlopCounterMode(display=False) as products,
        Calls() as calls,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        couplings, _ = couple_step(
            pieces, pieces if "coupling" in objective.needs else (), objective, score, None
        )
        accumulate_gradient(pieces, objective, score, couplings, global_weight(pieces, objective))
    batches = [piece.content.batch for piece in pieces if isinstance(piece.content, PackedContent)]
    multiplied = sum(n for name, n in products.get_flop_counts()["Global"].items() if "mm" in str(name))
    real = sum(batch.num_real_positions for batch in batches)
    shape = replace(Shape.of(policy.model), attention=())
    policy.model.zero_grad()
    return {
        "products": multiplied / work_of(shape, groups).training,
        "calls": float(calls.count),
        "kept": sum(storage.nbytes() for storage in kept.values()) / real,
        "packing": sum(batch.num_positions for batch in batches) / real,
    }


def imported(program: str) -> float:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, io; sys.stdout = io.StringIO()\n{program}\nsys.stderr.write(str(len(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stderr.splitlines()[-1])


def everything() -> dict[str, float]:
    body = model()
    policy = Policy(
        model=body,
        precision="fp32",
        sharing=choose_sharing(body, True)[0],
        sharing_reason="",
        kept_positions=LayoutOptions().micro_batch_tokens,
    )
    found = {}
    for name, count in CASES.items():
        measured = measure(OBJECTIVES[name](), groups_of(count, 8 if name == "rloo" else 2), policy)
        found |= {f"{name}/{what}": value for what, value in measured.items()}
    found["modules of --help"] = imported("from preftune.cli.main import main; main(['--help'])")
    found["modules of training"] = imported("import preftune.train.loop")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="make what is measured the baseline")
    settings = parser.parse_args()
    now = everything()
    if settings.write:
        BASELINE.write_text(
            json.dumps({name: round(value, 4) for name, value in now.items()}, indent=2) + "\n"
        )
    before = json.loads(BASELINE.read_text())
    ratios = {name: now[name] / before[name] for name in before}
    if settings.json:
        print(
            json.dumps(
                {name: {"baseline": before[name], "now": now[name], "ratio": ratios[name]} for name in before}
            )
        )
    else:
        print(f"{'':24}{'baseline':>12}{'now':>12}{'ratio':>8}")
        for name, ratio in ratios.items():
            print(
                f"{name:24}{before[name]:12.3f}{now[name]:12.3f}{ratio:8.3f}"
                + ("  worse" if ratio > TOLERANCE else "")
            )
    sys.exit(any(ratio > TOLERANCE for ratio in ratios.values()))


if __name__ == "__main__":
    main()
