"""Training on one GPU within ten minutes, without a network: here with varlen attention, FlexAttention and SDPA,
a plain baseline, TRL.

    python benchmarks/gpu.py [--models 0.5b 1.5b 8b-lora] [--methods NAME ...] [--mixes NAME ...] [--variants
    NAME ...]
                             [--minutes 9.5] [--json]
    python benchmarks/gpu.py --device cpu --tiny

Models have the shapes of Qwen2.5 0.5B and 1.5B (all weights train, fp32 weights under bf16 autocast) and of
Llama 3.1 8B (LoRA of rank 16 on bf16 weights), and random weights. Rows are random tokens:

    long-prompt     prompts of 800 to 1600 tokens, two answers of 40 to 160
    short-prompt    prompts of 40 to 160 tokens, two answers of 400 to 800
    groups          prompts of 128 to 256 tokens, eight answers of 100 to 400, in four pairs, half of them
    preferred

Methods are dpo with a live and with a cached reference, sft, bnf, and on groups the rloo update. Of `plain`
(benchmarks/plain_baseline.py, cached) and of TRL (as it comes, where it is installed) there is dpo on pairs.
All variants start from the same weights and see the same groups in the same order, and at the end once more
the groups of the first step: how far their loss has moved since must be the same for all within a tenth, or
the line says so and the exit status is 1.

A line gives pairs and real tokens (each prompt once, no padding; of sft only what is preferred) per second by
the median step, the peak of memory that torch took, and the utilisation: arithmetic that must be done (each
prompt once, the head where tokens are scored, no recomputation; of LoRA no gradients of frozen weights), by
the time it would take at the rate of a large bf16 matrix product, which is measured first. Two steps warm up;
what is compiled is compiled there or before, and not timed.
"""

import argparse
import copy
import gc
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pair_training
import plain_baseline
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from preftune.errors import PreftuneError
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.layout import LayoutOptions, segments, split_micro_batches
from preftune.model.load import make_lean, quiet_transformers
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_layout
from preftune.model.reference import adapter_off
from preftune.objectives import Objective
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.rloo import RLOO
from preftune.objectives.sft import SFT
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_score
from preftune.train.groups import learned_groups
from preftune.train.optimizers import make_optimizer
from preftune.train.options import OptimOptions
from preftune.train.step import run_step
from preftune.types import Group

Step = pair_training.Step

WARM_UP, RANK = 2, 16
METHODS: dict[str, Objective] = {
    "dpo-cached": DPO(beta=plain_baseline.BETA),
    "dpo-live": DPO(beta=plain_baseline.BETA),
    "sft": SFT(),
    "bnf": BNF(),
    "rloo": RLOO(beta=0.0, clip=0.2),
}
MIXES = {  # tokens of a prompt, tokens of an answer, answers
    "long-prompt": ((800, 1600), (40, 160), 2),
    "short-prompt": ((40, 160), (400, 800), 2),
    "groups": ((128, 256), (100, 400), 8),
}
VARIANTS = ("preftune-varlen", "preftune-flex", "preftune-sdpa", "plain", "trl")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes, how it is trained, and how much of it is computed at once."""

    config: PreTrainedConfig
    lora: bool
    layout: LayoutOptions
    batch: int  # groups of a step
    learning_rate: float = pair_training.RATE


def _sizes(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int
) -> dict[str, int]:
    sizes = dict(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    return sizes | dict(num_attention_heads=heads, num_key_value_heads=key_heads)


def shapes(tiny: bool) -> dict[str, Shape]:
    if tiny:
        sizes: dict[str, Any] = _sizes(64, 32, 48, 2, 4, 2) | dict(max_position_embeddings=512)
        layout = LayoutOptions(micro_batch_tokens=256)
        return {
            "tiny": Shape(
                config=Qwen2Config(**sizes), lora=False, layout=layout, batch=4, learning_rate=3e-3
            ),
            "tiny-lora": Shape(
                config=LlamaConfig(**sizes), lora=True, layout=layout, batch=4, learning_rate=1e-2
            ),
        }
    small = Qwen2Config(**_sizes(151936, 896, 4864, 24, 14, 2), tie_word_embeddings=True)
    middle = Qwen2Config(**_sizes(151936, 1536, 8960, 28, 12, 2), tie_word_embeddings=True)
    large = LlamaConfig(**_sizes(128256, 4096, 14336, 32, 32, 8), max_position_embeddings=8192)
    return {
        "0.5b": Shape(config=small, lora=False, layout=LayoutOptions(micro_batch_tokens=16384), batch=16),
        "1.5b": Shape(config=middle, lora=False, layout=LayoutOptions(micro_batch_tokens=4096), batch=16),
        "8b-lora": Shape(
            config=large,
            lora=True,
            layout=LayoutOptions(micro_batch_tokens=4096),
            batch=8,
            learning_rate=1e-4,
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured at once, from fresh weights."""

    model: str
    mix: str
    method: str
    variant: str


def cases(settings: argparse.Namespace, lora: dict[str, bool]) -> Iterator[Case]:
    """Of all models, mixes and methods that were asked for; where there is nothing to compare with, the
    variant is left out.
    """
    for model in lora:
        for method in settings.methods:
            for mix in settings.mixes:
                for variant in settings.variants:
                    pairs = method.startswith("dpo") and mix != "groups"
                    there = {"plain": pairs and method == "dpo-cached" and not lora[model], "trl": pairs}.get(
                        variant, True
                    )
                    if there and (method != "rloo" or mix == "groups"):
                        yield Case(model=model, mix=mix, method=method, variant=variant)


# --- data and models ---


def random_groups(mix: str, count: int, vocabulary: int, shorter: int) -> list[Group]:
    """Groups that carry every kind of signal; lengths are divided by `shorter`."""
    random = np.random.default_rng(0)
    prompt, answer, answers = MIXES[mix]

    def ids(low: int, high: int) -> np.ndarray:
        length = int(random.integers(max(2, low // shorter), high // shorter + 2))
        return random.integers(5, vocabulary, length).astype(np.int32)

    return [
        Group(
            prompt=ids(*prompt),
            completions=tuple(ids(*answer) for _ in range(answers)),
            labels=(1, -1) * (answers // 2),
            pairs=tuple((k, k + 1) for k in range(0, answers, 2)),
            rewards=tuple(random.normal(size=answers).tolist()),
            origin=f"random:{number}",
        )
        for number in range(count)
    ]


def build(shape: Shape, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """Random weights, the same in every call, and the peft.PeftModel around them where adapters train."""
    dtype = torch.bfloat16 if shape.lora else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(shape.config), dtype=dtype, attn_implementation="sdpa"
        ).eval()
        return model, inject_lora(model, LoraOptions(rank=RANK)).eval() if shape.lora else None


# --- the variants ---


def our_step(case: Case, shape: Shape, groups: Sequence[Group], device: torch.device) -> Step:
    model, adapted = build(shape, device)
    make_lean(model)
    layout = replace(shape.layout, attention=case.variant.removeprefix("preftune-"))
    sharing, reason = choose_layout(model, layout, "bf16")
    policy = Policy(
        model=model,
        precision="bf16",
        sharing=sharing,
        sharing_reason=reason,
        peft_model=adapted,
        kept_positions=layout.micro_batch_tokens,
    )
    objective = METHODS[case.method]
    kept = list(learned_groups(groups, objective))
    score = make_score(policy, objective, make_anchors(case.method, policy, kept, layout))
    parameters = list(policy.trainable().values())
    optimizer = make_optimizer(policy.trainable(), OptimOptions(learning_rate=shape.learning_rate))

    def step(number: int) -> float:
        pieces = cut_step(
            kept[number * shape.batch : (number + 1) * shape.batch], objective.signal, policy, layout
        )
        return run_step(pieces, objective, score, parameters, optimizer, pair_training.MAX_NORM).loss

    return step


def make_anchors(method: str, policy: Policy, groups: Sequence[Group], layout: LayoutOptions) -> Anchors:
    """The reference, live or computed now; for rloo a behaviour policy that is a little off the policy."""
    if method == "dpo-live" and policy.peft_model is not None:

        def off(part: Sequence[Group]) -> list[list[np.ndarray]]:
            with adapter_off(policy):
                return score_groups(policy, part, layout)

        return Anchors(reference=off)
    if method == "dpo-live":
        held = Policy(
            model=copy.deepcopy(policy.model).requires_grad_(False),
            precision="bf16",
            sharing=policy.sharing,
            sharing_reason="",
        )
        return Anchors(reference=lambda part: score_groups(held, part, layout))
    if method == "sft":
        return Anchors()
    logps: dict[str, list[np.ndarray]] = {}
    for indices in split_micro_batches(groups, layout, policy.sharing):
        part = [groups[i] for i in indices]
        logps |= {g.origin: one for g, one in zip(part, score_groups(policy, part, layout), strict=True)}
    if method != "rloo":
        return Anchors(reference=lambda part: [logps[group.origin] for group in part])
    random = np.random.default_rng(1)
    noisy = {
        name: [(one + 0.02 * random.normal(size=len(one))).astype(np.float32) for one in logps[name]]
        for name in sorted(logps)
    }
    return Anchors(behaviour=lambda part: [noisy[group.origin] for group in part])


def plain_step(case: Case, shape: Shape, groups: Sequence[Group], device: torch.device) -> Step:
    model, pairs = build(shape, device)[0], [as_pair(group) for group in groups]
    plain_baseline.MICRO_BATCH_TOKENS = shape.layout.micro_batch_tokens
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.learning_rate, weight_decay=0.0, fused=True)
    with torch.autocast(device.type, torch.bfloat16):
        reference = plain_baseline.reference_logps(model, pairs)

    def step(number: int) -> float:
        at = slice(number * shape.batch, (number + 1) * shape.batch)
        with torch.autocast(device.type, torch.bfloat16):
            return plain_baseline.step(model, optimizer, pairs[at], reference[:, at])

    return step


def trl_step(case: Case, shape: Shape, groups: Sequence[Group], device: torch.device) -> Step:
    from datasets import disable_progress_bars

    disable_progress_bars()
    cached = case.method == "dpo-cached"
    model, adapted = build(shape, device)
    return pair_training.trl_run(
        adapted or model,
        None if cached or shape.lora else build(shape, device)[0],
        word_tokenizer(),
        [as_pair(group) for group in groups],
        batch=shape.batch,
        precision="bf16",
        cached=cached,
        keep=False,
        rate=shape.learning_rate,
    )


def as_pair(group: Group) -> plain_baseline.Pair:
    prompt, chosen, rejected = (ids.tolist() for ids in (group.prompt, *group.completions))
    return prompt, chosen, rejected


def word_tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one, for two rows that it never trains on here."""
    words = ("<pad>", "<end>", "a", "b", "c")
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


STEPS: dict[str, Callable[[Case, Shape, Sequence[Group], torch.device], Step]] = {
    "preftune-varlen": our_step,
    "preftune-flex": our_step,
    "preftune-sdpa": our_step,
    "plain": plain_step,
    "trl": trl_step,
}


# --- what is measured ---


def product_rate(device: torch.device, size: int) -> float:
    """Operations per second of a bf16 matrix product of `size` by `size`, the best of some."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        wait(device)
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def needed_operations(method: str, shape: Shape, groups: Sequence[Group]) -> float:
    """Multiplications and additions that a step on these groups must do, however it is laid out."""
    config = shape.config
    size = config.hidden_size // config.num_attention_heads
    projections = config.hidden_size * size * 2 * (config.num_attention_heads + config.num_key_value_heads)
    layer = projections + 3 * config.hidden_size * config.intermediate_size
    positions = sum(segment.num_positions for segment in segments(groups, "shared"))
    scored = sum(sum(group.num_scored) for group in groups)
    seen = sum(map(looks, groups))
    linear = (
        2 * config.num_hidden_layers * layer * positions + 2 * config.vocab_size * config.hidden_size * scored
    )
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * size * seen
    # Backward: twice the products of the forward pass, once where the weight is frozen.
    training = (2 if shape.lora else 3) * linear + 3 * attention
    return training + (linear + attention if method == "dpo-live" else 0)


def looks(group: Group) -> int:
    """Pairs of a query and a key it may attend to, the prompt computed once."""
    prompt, inner = len(group.prompt), [len(ids) - 1 for ids in group.completions]
    return prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in inner)


def measure(
    case: Case, shape: Shape, groups: Sequence[Group], device: torch.device, rate: float
) -> dict[str, Any]:
    """One case in memory that is otherwise free: what it did in a second, and what it took."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    step = STEPS[case.variant](case, shape, groups, device)
    losses, seconds = [step(number) for number in range(WARM_UP)], []
    ready = time.perf_counter() - started
    for number in range(WARM_UP, len(groups) // shape.batch):
        wait(device)
        before = time.perf_counter()
        losses.append(step(number))
        wait(device)
        seconds.append(time.perf_counter() - before)
    losses.append(step(0))
    timed = learned_groups(groups[WARM_UP * shape.batch :], METHODS[case.method])
    total = len(seconds) * float(np.median(seconds))
    return {
        "losses": losses,
        "seconds": seconds,
        "ready_s": ready,
        "pairs_per_second": len(groups[0].pairs) * shape.batch * len(seconds) / total,
        "tokens_per_second": sum(len(group.prompt) + sum(map(len, group.completions)) for group in timed)
        / total,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "utilisation": needed_operations(case.method, shape, timed) / total / rate,
    }


def agree(losses: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether the loss of the first groups has moved alike; two thousandths are rounding."""
    moved = abs(expected[-1] - expected[0])
    return (
        abs(losses[0] - expected[0]) < 2e-3 + 0.01 * abs(expected[0])
        and abs(losses[-1] - expected[-1]) < 2e-3 + 0.1 * moved
    )


def tried(
    case: Case, shape: Shape, groups: Sequence[Group], device: torch.device, rate: float
) -> dict[str, Any]:
    """The measurement, or in one line why there is none: another variant may still have room or run."""
    try:
        return measure(case, shape, groups, device, rate)
    except PreftuneError as error:
        return {"left_out": str(error)}
    except Exception as error:  # out of memory, or a kernel that fails in any way
        return {"left_out": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def sentence(line: dict[str, Any]) -> str:
    name = f"{line['model']}, {line['mix']}, {line['method']}, {line['variant']}"
    if "left_out" in line:
        return f"{name}: left out: {line['left_out']}"
    peak = "" if line["peak_gib"] is None else f", peak {line['peak_gib']:.1f} GiB"
    apart = (
        ""
        if line["agrees"]
        else "; its losses are not those of the first variant, so that there is nothing to compare"
    )
    return (
        f"{name}: {line['pairs_per_second']:.1f} pairs/s, {line['tokens_per_second']:.0f} tokens/s, "
        f"{100 * line['utilisation']:.0f}% of the product rate{peak}{apart}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="two tiny models and short rows, to try the script out"
    )
    parser.add_argument("--models", nargs="+", choices=shapes(False), default=list(shapes(False)))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=[name for name in VARIANTS if name != "trl" or importlib.util.find_spec("trl")],
    )
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="after which no case is begun; every model gets its share"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    settings = parser.parse_args()
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; --device cpu --tiny tries the script out")
    quiet_transformers()
    sys.exit(run(settings, torch.device(settings.device)))


def run(settings: argparse.Namespace, device: torch.device) -> int:
    started, known = time.perf_counter(), shapes(settings.tiny)
    names = list(known) if settings.tiny else settings.models
    rate = product_rate(device, 256 if settings.tiny else 8192)
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "product_rate": rate,
    }
    print(
        json.dumps(about)
        if settings.json
        else f"{about['device']}: {rate / 1e12:.3g} TFLOP/s in bf16 products",
        flush=True,
    )
    first: dict[tuple[str, str, str], list[float]] = {}
    all_agree = True
    for case in cases(settings, {name: known[name].lora for name in names}):
        shape, share = known[case.model], (names.index(case.model) + 1) / len(names) * settings.minutes * 60
        found: dict[str, Any] = {"left_out": "no time was left"}
        if time.perf_counter() - started < share:
            count = shape.batch * (WARM_UP + settings.steps)
            groups = random_groups(case.mix, count, shape.config.vocab_size, 20 if settings.tiny else 1)
            found = tried(case, shape, groups, device, rate)
        if "losses" in found:
            found["agrees"] = agree(
                found["losses"], first.setdefault((case.model, case.mix, case.method), found["losses"])
            )
            all_agree &= found["agrees"]
        line = asdict(case) | found
        print(json.dumps(line) if settings.json else sentence(line), flush=True)
    return 0 if all_agree else 1


if __name__ == "__main__":
    main()
