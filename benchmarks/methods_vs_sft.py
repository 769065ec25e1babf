"""Time of a step of several methods against an SFT step on the same tokens, the reference cached;
alternating, in one process.

    python benchmarks/methods_vs_sft.py [--methods bnf dpo kto] [--model NAME] [--steps 12] [--groups 8]
    [--json]

Groups have the lengths of short dialogues: prompts of 30 to 150 tokens, two completions of 10 to 60. The
learning rate is 0, so that all objectives see the same weights throughout. Prints the median time of each and
the ratio of the medians, with the spread of the ratio over adjacent steps. A method that scores each prompt
also with another group's completions (kto) has its ratio with and without these rows, whose forward pass is
timed by itself right after the step.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.load import LoadOptions, load_model, resolve_model
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_sharing
from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.sft import SFT
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_mismatched, cut_step, make_score
from preftune.train.optimizers import make_optimizer
from preftune.train.options import OptimOptions
from preftune.train.step import run_step
from preftune.types import Group


def random_groups(num: int, vocabulary: int) -> list[Group]:
    """Two completions each; all preferred, so that SFT puts weight on the same tokens as the others do."""
    random = np.random.default_rng(0)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(5, vocabulary, int(random.integers(low, high))).astype(np.int32)

    return [
        Group(
            prompt=ids(30, 150),
            completions=(ids(10, 60), ids(10, 60)),
            labels=(1, 1),
            pairs=((0, 1),),
            origin=f"random:{i}",
        )
        for i in range(num)
    ]


def reference_of(
    policy: Policy, groups: Sequence[Group], layout: LayoutOptions
) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for indices in split_micro_batches(groups, layout, policy.sharing):
        part = [groups[i] for i in indices]
        found |= {g.origin: one for g, one in zip(part, score_groups(policy, part, layout), strict=True)}
    return found


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    model, layout = load_model(resolve_model(settings.model), LoadOptions()), LayoutOptions()
    policy = Policy(
        model=model,
        precision="fp32",
        sharing=choose_sharing(model, True)[0],
        sharing_reason="",
        kept_positions=layout.micro_batch_tokens,
    )
    groups = random_groups(settings.groups, model.config.vocab_size)
    objectives: dict[str, Objective] = {"sft": SFT(reduction="sequence_mean")} | {
        m: OBJECTIVES[m]() for m in settings.methods
    }
    mismatched = {name: cut_mismatched(groups, one, policy, layout) for name, one in objectives.items()}
    known = [group for pieces in mismatched.values() for piece in pieces for group in piece.content.groups]  # type: ignore[attr-defined]
    logps = reference_of(policy, [*groups, *known], layout)
    anchors = Anchors(reference=lambda part: [logps[g.origin] for g in part])
    parameters = list(policy.trainable().values())
    optimizer = make_optimizer(policy.trainable(), OptimOptions(learning_rate=0.0))
    times: dict[str, list[float]] = {name: [] for name in objectives}
    extra: dict[str, list[float]] = {name: [] for name in objectives}
    for step in range(settings.steps + 1):  # the first round warms up
        for name, objective in sorted(objectives.items(), reverse=step % 2 == 0):
            score = make_score(policy, objective, anchors if name != "sft" else Anchors())
            started = time.perf_counter()
            pieces = cut_step(groups, objective.signal, policy, layout)
            run_step(pieces, objective, score, parameters, optimizer, 1.0, mismatched=mismatched[name])
            done = time.perf_counter()
            with torch.no_grad():
                for piece in mismatched[name]:
                    score(piece)
            if step:
                times[name].append(done - started)
                extra[name].append(time.perf_counter() - done if mismatched[name] else 0.0)
    positions = sum(piece.content.batch.num_real_positions for piece in pieces)  # type: ignore[attr-defined]
    return {
        "steps": settings.steps,
        "threads": torch.get_num_threads(),
        "positions": positions,
        "sft_seconds": float(np.median(times["sft"])),
        "methods": {name: compared(times[name], times["sft"], extra[name]) for name in settings.methods},
    }


def compared(mine: Sequence[float], sft: Sequence[float], extra: Sequence[float]) -> dict[str, Any]:
    own = np.array(mine) - np.array(extra)
    return {
        "seconds": float(np.median(mine)),
        "ratio": float(np.median(mine) / np.median(sft)),
        "ratio_quartiles": [float(q) for q in np.quantile(np.array(mine) / np.array(sft), [0.25, 0.75])],
        "ratio_without_extra_rows": float(np.median(own) / np.median(sft)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["bnf", "dpo", "kto"])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    result = measure(settings)
    if settings.json:
        print(json.dumps(result))
        return
    print(
        f"{result['positions']} positions a step, {result['threads']} thread(s); sft {result['sft_seconds']:.2f} s"
    )
    for name, one in result["methods"].items():
        low, high = one["ratio_quartiles"]
        rows = one["ratio_without_extra_rows"]
        aside = f", {rows:.3f} without its mismatched rows" if rows != one["ratio"] else ""
        print(f"{name} / sft = {one['ratio']:.3f} (adjacent steps: quartiles {low:.3f} to {high:.3f}){aside}")


if __name__ == "__main__":
    main()
