"""Time of a BNF step against an SFT step on the same tokens, the reference cached; alternating, in one process.

    python benchmarks/bnf_vs_sft.py [--model NAME] [--steps 12] [--groups 8] [--json]

Groups have the lengths of short dialogues: prompts of 30 to 150 tokens, two completions of 10 to 60. The learning rate is 0,
so that both objectives see the same weights throughout. Prints the median time of each and the ratio of the medians, with
the spread of the ratio over adjacent pairs of steps.
"""

import argparse
import json
import time

import numpy as np
import torch

from preftune.data.pack import LayoutOptions, split_micro_batches
from preftune.objectives import Objective
from preftune.objectives.bnf import BNF
from preftune.objectives.sft import SFT
from preftune.policy.load import LoadOptions, load_model, resolve_model
from preftune.policy.policy import Policy, choose_sharing, score_groups
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_score
from preftune.train.optim import make_optimiser
from preftune.train.options import OptimOptions
from preftune.train.step import run_step
from preftune.types import Group


def random_groups(num: int, vocabulary: int) -> list[Group]:
    """Two completions each; all preferred, so that SFT puts weight on the same tokens as BNF does."""
    random = np.random.default_rng(0)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(5, vocabulary, int(random.integers(low, high))).astype(np.int32)

    return [
        Group(prompt=ids(30, 150), completions=(ids(10, 60), ids(10, 60)), labels=(1, 1), origin=f"random:{i}")
        for i in range(num)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    model = load_model(resolve_model(settings.model), LoadOptions())
    sharing, _ = choose_sharing(model, True)
    policy = Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")
    layout = LayoutOptions()
    groups = random_groups(settings.groups, model.config.vocab_size)
    logps: dict[str, list[np.ndarray]] = {}
    for indices in split_micro_batches(groups, layout, sharing):
        part = [groups[i] for i in indices]
        logps |= {g.origin: one for g, one in zip(part, score_groups(policy, part, layout), strict=True)}
    parameters = list(policy.trainable().values())
    optimiser = make_optimiser(parameters, OptimOptions(learning_rate=0.0))
    objectives: dict[str, Objective] = {"sft": SFT(reduction="sequence_mean"), "bnf": BNF()}
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for step in range(settings.steps + 1):  # the first round warms up
        for name, objective in sorted(objectives.items(), reverse=step % 2 == 0):
            started = time.perf_counter()
            anchors = Anchors(reference=(lambda part: [logps[g.origin] for g in part]) if name == "bnf" else None)
            pieces = cut_step(groups, objective.signal, policy, layout)
            run_step(pieces, objective, make_score(policy, objective, anchors), parameters, optimiser, 1.0)
            if step:
                times[name].append(time.perf_counter() - started)
    ratios = np.array(times["bnf"]) / np.array(times["sft"])
    result = {
        "ratio": float(np.median(times["bnf"]) / np.median(times["sft"])),
        "ratio_quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
        "bnf_seconds": float(np.median(times["bnf"])),
        "sft_seconds": float(np.median(times["sft"])),
        "steps": settings.steps, "threads": torch.get_num_threads(),
        "positions": sum(piece.content.batch.num_real_positions for piece in pieces),  # type: ignore[attr-defined]
    }  # fmt: skip
    if settings.json:
        print(json.dumps(result))
    else:
        print(f"bnf / sft = {result['ratio']:.3f} (adjacent steps: quartiles "
              f"{result['ratio_quartiles'][0]:.3f} to {result['ratio_quartiles'][1]:.3f}); "
              f"{result['bnf_seconds']:.2f} and {result['sft_seconds']:.2f} s a step of {result['positions']} tokens")  # fmt: skip


if __name__ == "__main__":
    main()
