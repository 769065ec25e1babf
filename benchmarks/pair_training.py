"""DPO on pairs, full fine-tuning: pairs per second and peak memory, here, in TRL, and in a plain baseline.

    python benchmarks/pair_training.py --data FILE [--pairs 8] [--steps 4] [--turns 3] [--precision fp32]
                                       [--variants NAME ...] [--json]
    python benchmarks/pair_training.py --mix long-prompt|short-prompt|mixed

The same weights, rows (as token ids), order, precision and optimizer for all: AdamW at 1e-6, gradients
clipped at norm 1, beta
0.1. Every variant runs in a fresh process, `--turns` times, the order turned round each time. The losses of
all steps must be equal to 1e-4 (fp32; 2e-2 in bf16), or the comparison stops. A step is everything from token
ids to moved weights; the first one warms up. Times are by the clock and as processor time. Memory is the peak
of the whole process; gradients, moments and weights, four times the weights, are in it for all.

    preftune-live, preftune-cached         reference beside the policy, or computed before; activations kept,
    as it comes preftune-recompute                     cached, with gradient_checkpointing
    preftune-plain-products                cached, without `preftune.model.kernels.products`: what is left if
    a processor has no use for it trl-live, trl-cached                   as it comes: fused head, gradient
    checkpointing trl-live-keep, trl-cached-keep         without checkpointing, as someone would choose who
    has the memory plain                                  benchmarks/plain_baseline.py, cached

`--mix` draws random tokens: prompts of 400 to 700 tokens with answers of 10 to 60, prompts of 10 to 60 with
answers of 200 to 400, or half of each.
"""

import argparse
import copy
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plain_baseline
import torch
from transformers import AutoModelForCausalLM

from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.model.attention_masks import set_attention
from preftune.model.attention_segments import plain_attention
from preftune.model.kernels.products import use_fast_products
from preftune.model.layout import LayoutOptions, segments, split_micro_batches
from preftune.model.load import LoadOptions, load_tokenizer, make_lean, quiet_transformers, resolve_model
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_sharing
from preftune.objectives.dpo import DPO
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_score
from preftune.train.optimizers import make_optimizer
from preftune.train.options import OptimOptions
from preftune.train.step import run_step
from preftune.types import Group

VARIANTS = (
    "preftune-live",
    "preftune-cached",
    "preftune-recompute",
    "preftune-plain-products",
    "trl-live",
    "trl-cached",
    "trl-live-keep",
    "trl-cached-keep",
    "plain",
)
RATE, MAX_NORM = 1e-6, 1.0
AGREEMENT = {"fp32": 1e-4, "bf16": 2e-2}
MIXES = {"long-prompt": ((400, 700), (10, 60)), "short-prompt": ((10, 60), (200, 400))}

Pair = plain_baseline.Pair
Step = Callable[[int], float]
"""Does step 0, 1, ... and returns its loss."""


def read_pairs(settings: argparse.Namespace) -> list[Pair]:
    """Enough pairs for all steps, in a shuffled order: of the file within the token limit, or random ones."""
    wanted, random = settings.pairs * (settings.steps + 1), np.random.default_rng(0)
    tokenizer = load_tokenizer(resolve_model(settings.model), LoadOptions())
    if settings.mix:
        kinds = itertools.cycle(
            [MIXES[name] for name in (MIXES if settings.mix == "mixed" else (settings.mix,))]
        )

        def ids(span: tuple[int, int]) -> list[int]:
            return random.integers(5, len(tokenizer), int(random.integers(*span))).tolist()

        return [(ids(prompt), ids(answer), ids(answer)) for prompt, answer in itertools.islice(kinds, wanted)]
    groups = prepare(settings.data, tokenizer, "pairs", DataOptions(max_length=settings.max_tokens)).groups
    fitting = [g for g in groups if len(g.prompt) + sum(map(len, g.completions)) <= settings.max_tokens]
    found = [fitting[i] for i in random.permutation(len(fitting))]
    if len(found) < wanted:
        sys.exit(
            f"{settings.data} has {len(found)} pairs within {settings.max_tokens} tokens; expected {wanted}"
        )
    sides = [(group, *group.pairs[0]) for group in found[:wanted]]
    return [(g.prompt.tolist(), g.completions[c].tolist(), g.completions[r].tolist()) for g, c, r in sides]


def as_group(pair: Pair, number: int) -> Group:
    prompt, chosen, rejected = (np.array(ids, dtype=np.int32) for ids in pair)
    return Group(prompt=prompt, completions=(chosen, rejected), pairs=((0, 1),), origin=str(number))


def plain_model(name: str) -> Any:
    """As transformers loads it, but with its weights in memory: pages of a mapped file come in when they are
    read.
    """
    model = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.tie_weights()
    return model


def our_steps(variant: str, pairs: Sequence[Pair], settings: argparse.Namespace) -> Step:
    model = plain_model(settings.model)
    set_attention(model, plain_attention(model.config))
    make_lean(model)
    if variant != "preftune-plain-products":
        use_fast_products()
    layout = LayoutOptions(micro_batch_tokens=settings.micro_batch_tokens)
    policy = Policy(
        model=model,
        precision=settings.precision,
        sharing=choose_sharing(model, True)[0],
        sharing_reason="",
        kept_positions=0 if variant == "preftune-recompute" else layout.micro_batch_tokens,
    )
    groups = [as_group(pair, i) for i, pair in enumerate(pairs)]
    if variant == "preftune-live":
        held = Policy(
            model=copy.deepcopy(model), precision=policy.precision, sharing=policy.sharing, sharing_reason=""
        )
        held.model.requires_grad_(False)
        anchors = Anchors(reference=lambda part: score_groups(held, part, layout))
    else:
        logps: dict[str, list[np.ndarray]] = {}
        for indices in split_micro_batches(groups, layout, policy.sharing):
            part = [groups[i] for i in indices]
            logps |= {g.origin: one for g, one in zip(part, score_groups(policy, part, layout), strict=True)}
        anchors = Anchors(reference=lambda part: [logps[g.origin] for g in part])
    objective, parameters = DPO(beta=plain_baseline.BETA), list(policy.trainable().values())
    optimizer = make_optimizer(policy.trainable(), OptimOptions(learning_rate=RATE))

    def step(number: int) -> float:
        part = groups[number * settings.pairs : (number + 1) * settings.pairs]
        pieces = cut_step(part, objective.signal, policy, layout)
        return run_step(
            pieces, objective, make_score(policy, objective, anchors), parameters, optimizer, MAX_NORM
        ).loss

    return step


def trl_steps(variant: str, pairs: Sequence[Pair], settings: argparse.Namespace) -> Step:
    model, tokenizer = (
        plain_model(settings.model),
        load_tokenizer(resolve_model(settings.model), LoadOptions()),
    )
    reference = None if "cached" in variant else plain_model(settings.model)
    return trl_run(
        model,
        reference,
        tokenizer,
        pairs,
        batch=settings.pairs,
        precision=settings.precision,
        cached="cached" in variant,
        keep=variant.endswith("-keep"),
    )


def trl_run(
    model: Any,
    reference: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    batch: int,
    precision: str,
    cached: bool,
    keep: bool,
    rate: float = RATE,
) -> Step:
    """TRL's trainer with its own collator, `training_step` and optimizer, on the same token ids, where the
    model is.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=model.device.type == "cpu",
        bf16=precision == "bf16",
        report_to=[],
        disable_tqdm=True,
        beta=plain_baseline.BETA,
        learning_rate=rate,
        per_device_train_batch_size=batch,
        max_length=None,
        precompute_ref_log_probs=cached,
        **({"gradient_checkpointing": False} if keep else {}),
    )
    trainer: Any = DPOTrainer(
        model,
        reference,
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2),
    )
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    if cached:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            with torch.no_grad():
                chosen, rejected = trainer.compute_ref_log_probs(
                    model, trainer._prepare_inputs(trainer.data_collator(part))
                )
            for row, c, r in zip(part, chosen.tolist(), rejected.tolist(), strict=True):
                row |= {"ref_chosen_logps": c, "ref_rejected_logps": r}
    optimizer = trainer.create_optimizer()

    def step(number: int) -> float:
        inputs = trainer.data_collator(rows[number * batch : (number + 1) * batch])
        model.zero_grad()
        loss = trainer.training_step(model, inputs, None).item()
        trainer.accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return loss

    trainer.current_gradient_accumulation_steps = 1
    return step


def plain_steps(variant: str, pairs: Sequence[Pair], settings: argparse.Namespace) -> Step:
    model = plain_model(settings.model)
    reference = plain_baseline.reference_logps(model, pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)

    def step(number: int) -> float:
        at = slice(number * settings.pairs, (number + 1) * settings.pairs)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            return plain_baseline.step(model, optimizer, pairs[at], reference[:, at])

    return step


def resident(field: str) -> float:
    """MiB in memory: VmRSS now, VmHWM at the most so far."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def child(settings: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: one variant, all steps."""
    pairs: list[Pair] = [tuple(pair) for pair in json.loads(Path(settings.rows).read_text())]
    kind = {"preftune": our_steps, "trl": trl_steps, "plain": plain_steps}[settings.child.split("-")[0]]
    started = time.perf_counter()
    model_bytes = sum(p.numel() * p.element_size() for p in plain_model(settings.model).parameters())
    loaded = resident("VmRSS")
    step = kind(settings.child, pairs, settings)
    ready, seconds, losses = time.perf_counter() - started, [], [step(0)]
    for number in range(1, settings.steps + 1):
        before = time.perf_counter(), time.process_time()
        losses.append(step(number))
        seconds.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return {
        "losses": losses,
        "seconds": seconds,
        "peak_mib": resident("VmHWM"),
        "loaded_mib": loaded,
        "weights_mib": model_bytes / 2**20,
        "ready_s": ready,
    }


def run_child(variant: str, rows: str, settings: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--child",
        variant,
        "--rows",
        rows,
        "--model",
        settings.model,
        "--pairs",
        str(settings.pairs),
        "--steps",
        str(settings.steps),
        "--precision",
        settings.precision,
        "--micro_batch_tokens",
        str(settings.micro_batch_tokens),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(done.splitlines()[-1])


def check_losses(found: dict[str, list[dict[str, Any]]], precision: str) -> float:
    """The largest difference of two variants' losses on a step; ends the benchmark if they do not train
    alike.
    """
    losses = np.array([one["losses"] for runs in found.values() for one in runs])
    apart = float(np.ptp(losses, axis=0).max())
    if not apart <= AGREEMENT[precision]:
        names = {name: runs[0]["losses"] for name, runs in found.items()}
        sys.exit(f"The variants do not compute the same, so that there is nothing to compare: {names}")
    return apart


def positions(pairs: Sequence[Pair]) -> dict[str, int]:
    """Tokens that the model must compute: with each prompt once, and padded as TRL does it in batches as
    given.
    """
    groups = [as_group(pair, i) for i, pair in enumerate(pairs)]
    return {
        "shared": sum(s.num_positions for s in segments(groups, "shared")),
        "unshared": sum(2 * len(p) + len(c) + len(r) for p, c, r in pairs),
    }


def sentences(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['data']}: {result['pairs']} pairs a step, {result['precision']}, {result['threads']} thread(s); "
        f"losses apart by {result['apart']:.1e} at most"
    ]
    speed, peak = result["pairs_per_second"], result["peak_mib"]
    for name in speed:
        clock, processor = speed[name]["clock"], speed[name]["processor"]
        lines.append(
            f"{name}: {clock['median']:.2f} pairs/s by the clock, {processor['median']:.2f} by processor time; "
            f"peak {peak[name]:.0f} MiB"
        )
    for (ours, theirs), ratio in ((name.split(" / "), ratio) for name, ratio in result["ratios"].items()):
        if ("live" in ours) == ("live" in theirs):  # the same work
            lines.append(
                f"{ours} does {ratio['clock']:.2f} times the pairs/s of {theirs} (turns {ratio['low']:.2f} to "
                f"{ratio['high']:.2f}), {ratio['processor']:.2f} by processor time, with {ratio['peak']:.2f} of its peak "
                "memory"
            )
    return lines


def summary(
    found: dict[str, list[dict[str, Any]]], pairs: Sequence[Pair], settings: argparse.Namespace
) -> dict[str, Any]:
    rate = {
        name: np.array(
            [[settings.pairs / np.median(s) for s in zip(*one["seconds"], strict=True)] for one in runs]
        )
        for name, runs in found.items()
    }  # [turns, 2]
    peak = {name: float(np.median([one["peak_mib"] for one in runs])) for name, runs in found.items()}
    ratios = {}
    for ours, theirs in itertools.product(found, found):
        if ours.startswith("preftune") and not theirs.startswith("preftune"):
            by_turn = rate[ours] / rate[theirs]
            ratios[f"{ours} / {theirs}"] = {
                "clock": float(np.median(by_turn[:, 0])),
                "low": float(by_turn[:, 0].min()),
                "high": float(by_turn[:, 0].max()),
                "processor": float(np.median(by_turn[:, 1])),
                "peak": peak[ours] / peak[theirs],
            }
    return {
        "data": settings.mix or Path(settings.data).name,
        "pairs": settings.pairs,
        "steps": settings.steps,
        "turns": settings.turns,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "positions": positions(pairs[settings.pairs :]),
        "apart": check_losses(found, settings.precision),
        "pairs_per_second": {
            name: {"clock": spread(values[:, 0]), "processor": spread(values[:, 1])}
            for name, values in rate.items()
        },
        "peak_mib": peak,
        "loaded_mib": {name: runs[0]["loaded_mib"] for name, runs in found.items()},
        "ready_s": {name: [one["ready_s"] for one in runs] for name, runs in found.items()},
        "ratios": ratios,
    }


def spread(values: np.ndarray) -> dict[str, Any]:
    return {"median": float(np.median(values)), "all": values.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="pairs in any format that preftune reads")
    parser.add_argument("--mix", choices=(*MIXES, "mixed"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=8, help="of a step")
    parser.add_argument("--steps", type=int, default=4, help="that are timed, after one that warms up")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max_tokens", type=int, default=1024, help="of a prompt with both answers")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--micro_batch_tokens", type=int, default=LayoutOptions().micro_batch_tokens, help="of preftune"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument(
        "--child", choices=VARIANTS, help=argparse.SUPPRESS
    )  # what the processes of their own run
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    quiet_transformers()
    if settings.child:
        print(json.dumps(child(settings)))
        return
    if (settings.data is None) == (settings.mix is None):
        parser.error("give --data FILE or --mix NAME")
    pairs = read_pairs(settings)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.variants}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        rows.write_text(json.dumps(pairs))
        for turn in range(settings.turns):
            for name in settings.variants[:: -1 if turn % 2 else 1]:
                found[name].append(run_child(name, str(rows), settings))
                rate = settings.pairs / np.median([s[0] for s in found[name][-1]["seconds"]])
                print(
                    f"  turn {turn + 1} of {settings.turns}, {name}: {rate:.2f} pairs/s",
                    file=sys.stderr,
                    flush=True,
                )
            check_losses({name: runs for name, runs in found.items() if runs}, settings.precision)
    result = summary(found, pairs, settings)
    print(json.dumps(result) if settings.json else "\n".join(sentences(result)))


if __name__ == "__main__":
    main()
