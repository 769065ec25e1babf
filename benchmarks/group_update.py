"""A policy-gradient update on groups of 8 completions, here and in TRL: time, completions per second and peak
memory.

    python benchmarks/group_update.py [--model NAME] [--objective grpo|rloo] [--prompts 2] [--updates 6]
                                      [--variants NAME ...] [--only time|memory] [--json]

The same weights, prompts (128 to 256 tokens), completions (16 to 96 tokens), rewards and behaviour
log-probabilities for both, in fp32 with as many threads as torch is given. First the two must agree on loss
and gradient, or the benchmark stops. An update is everything from the ready completions to the moved weights:
loss, backward, clipping, AdamW; no sampling, no rewards, no scoring under a reference or a behaviour policy
(beta is 0). The learning rate is 0, so that every update sees the same weights.

TRL runs its own `training_step` with its default `per_device_train_batch_size` of 8 and as many accumulation
steps as there are
prompts: rows of a generation batch, padded and shuffled as it does that. Variants:

    preftune             as it comes: one layout of rows, activations kept
    preftune-recompute   with gradient_checkpointing
    trl                  as it comes: with gradient checkpointing
    trl-keep             without it, as someone would choose who has the memory: the faster of the two

Times are taken in turns in one process, by the clock and as processor time, which a shared machine disturbs
less; TRL so has the matrix products of `preftune.model.kernels.products` too. Peak memory is
that of a process of its own per variant, above the loaded model: with the optimizer's moments and the
gradients (the same for
all: three times the weights), and without these.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.load import LoadOptions, load_model, load_tokenizer, quiet_transformers, resolve_model
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_sharing
from preftune.objectives.advantages import leave_one_out, standardized
from preftune.objectives.grpo import GRPO
from preftune.objectives.rloo import RLOO
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_score
from preftune.train.optimizers import make_optimizer
from preftune.train.options import OptimOptions
from preftune.train.step import run_step
from preftune.types import Group, Rewards

SIZE, MAX_TOKENS, MAX_NORM, AGREEMENT = 8, 96, 1.0, 1e-4
VARIANTS = ("preftune", "preftune-recompute", "trl", "trl-keep")
RECOMPUTING = ("preftune-recompute", "trl")
OBJECTIVES = {"grpo": GRPO(beta=0.0, clip=0.2), "rloo": RLOO(beta=0.0, clip=0.2)}
NOISE = {"grpo": 0.1, "rloo": 0.02}
"""Nats per token by which the behaviour policy differs: some ratios are clipped, most are not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the two, ready to update its own copy of the model."""

    model: PreTrainedModel
    # loss, norm of the gradient; the clipped gradient stays in place
    update: Callable[[], tuple[float, float]]
    recompute: Callable[[bool], None]


# --- the data ---


def random_groups(num: int, vocabulary: int) -> list[Group]:
    random = np.random.default_rng(0)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(5, vocabulary, int(random.integers(low, high + 1))).astype(np.int32)

    return [
        Group(
            prompt=ids(128, 256),
            completions=tuple(ids(16, MAX_TOKENS) for _ in range(SIZE)),
            rewards=tuple(random.normal(size=SIZE).tolist()),
            origin=f"random:{i}",
        )
        for i in range(num)
    ]


def behaviour_logps(policy: Policy, groups: Sequence[Group], noise: float) -> dict[str, list[np.ndarray]]:
    """By origin: the policy's own log-probabilities, a little off."""
    random, layout = np.random.default_rng(2), LayoutOptions()
    found: dict[str, list[np.ndarray]] = {}
    for indices in split_micro_batches(groups, layout, policy.sharing):
        part = [groups[i] for i in indices]
        for group, logps in zip(part, score_groups(policy, part, layout), strict=True):
            found[group.origin] = [
                (one + noise * random.normal(size=len(one))).astype(np.float32) for one in logps
            ]
    return found


# --- the two sides ---


def plain_model(name: str) -> PreTrainedModel:
    """With its weights in memory, and not in a mapped file of which pages come in when they are read."""
    model = load_model(resolve_model(name), LoadOptions())
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.tie_weights()
    return model


def our_policy(name: str) -> Policy:
    model = plain_model(name)
    return Policy(
        model=model,
        precision="fp32",
        sharing=choose_sharing(model, True)[0],
        sharing_reason="",
        kept_positions=LayoutOptions().micro_batch_tokens,
    )


def our_side(
    policy: Policy, objective: GRPO | RLOO, groups: Sequence[Group], behaviour: dict[str, list[np.ndarray]]
) -> Side:
    parameters, layout, used = list(policy.trainable().values()), LayoutOptions(), policy
    optimizer = make_optimizer(policy.trainable(), OptimOptions(learning_rate=0.0))
    start_moments(optimizer, parameters)
    anchors = Anchors(behaviour=lambda part: [behaviour[group.origin] for group in part])

    def update() -> tuple[float, float]:
        pieces = cut_step(groups, objective.signal, policy, layout)
        done = run_step(
            pieces, objective, make_score(used, objective, anchors), parameters, optimizer, MAX_NORM
        )
        return done.loss, done.grad_norm

    def recompute(wanted: bool) -> None:
        nonlocal used
        used = replace(policy, kept_positions=0) if wanted else policy

    return Side(model=policy.model, update=update, recompute=recompute)


def trl_side(
    name: str, objective: str, groups: Sequence[Group], behaviour: dict[str, list[np.ndarray]]
) -> Side:
    """TRL's trainer, handed what it makes of completions and rewards; `training_step` and below are its own."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    model = plain_model(name)
    common: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        learning_rate=0.0,
        beta=0.0,
        num_generations=SIZE,
        max_completion_length=MAX_TOKENS,
        gradient_accumulation_steps=len(groups),
    )
    kind, config = (
        (GRPOTrainer, GRPOConfig(loss_type="grpo", **common))
        if objective == "grpo"
        else (RLOOTrainer, RLOOConfig(**common))
    )
    trainer: Any = kind(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=load_tokenizer(resolve_model(name), LoadOptions()),
    )
    assert (config.per_device_train_batch_size, config.activation_checkpointing) == (SIZE, True), (
        "TRL's defaults have changed"
    )
    inputs = trl_inputs(objective, groups, behaviour)
    trainer._generate_and_score_completions = lambda _: inputs
    trainer.current_gradient_accumulation_steps = len(groups)
    optimizer = trainer.create_optimizer()
    start_moments(optimizer, list(model.parameters()))

    def update() -> tuple[float, float]:
        model.zero_grad()
        loss = sum(trainer.training_step(model, {}, None).item() for _ in groups)
        norm = trainer.accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return loss, norm.item()

    def recompute(wanted: bool) -> None:
        model.activation_checkpointing_enable() if wanted else model.activation_checkpointing_disable()

    return Side(model=model, update=update, recompute=recompute)


def trl_inputs(
    objective: str, groups: Sequence[Group], behaviour: dict[str, list[np.ndarray]]
) -> dict[str, Tensor]:
    """Its generation batch: prompts padded on the left, completions on the right, each to the longest."""
    prompts = [torch.from_numpy(group.prompt).long() for group in groups for _ in group.completions]
    completions = [torch.from_numpy(ids).long() for group in groups for ids in group.completions]
    old = [torch.from_numpy(logp) for group in groups for logp in behaviour[group.origin]]
    signal = Rewards(
        reward=torch.tensor([r for group in groups for r in group.rewards], dtype=torch.float32),
        group=torch.arange(len(prompts)) // SIZE,
    )
    is_grpo = objective == "grpo"
    return {
        "prompt_ids": padded(prompts, "left"),
        "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], "left"),
        "completion_ids": padded(completions),
        "completion_mask": padded([torch.ones_like(ids) for ids in completions]),
        "advantages": standardized(signal.reward, signal, 1e-4)
        if is_grpo
        else leave_one_out(signal.reward, signal),
    } | (
        {"old_per_token_logps": padded(old)}
        if is_grpo
        else {"old_logps": torch.stack([logp.sum() for logp in old])}
    )


def padded(rows: Sequence[Tensor], side: str = "right") -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side=side)


def start_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> None:
    """A step on a gradient of zero, so that the first update that is measured is like all others."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# --- what is measured ---


def check_agreement(ours: Side, theirs: Side, size: float) -> dict[str, float]:
    """Relative differences of the gradient's norm, of the clipped gradient, and of the loss; they end the
    benchmark if large.

    The loss is a sum of terms of both signs that nearly cancel; its difference is relative to the mean size
    of an advantage.
    """
    (loss, norm), (other_loss, other_norm) = ours.update(), theirs.update()
    mine, other = dict(ours.model.named_parameters()), dict(theirs.model.named_parameters())
    apart = sum(float((mine[name].grad - p.grad).double().square().sum()) for name, p in other.items()) ** 0.5
    length = sum(float(p.grad.double().square().sum()) for p in other.values()) ** 0.5
    found = {
        "loss": abs(loss - other_loss) / size,
        "norm": abs(norm - other_norm) / other_norm,
        "gradient": apart / length,
    }
    if max(found.values()) > AGREEMENT:
        sys.exit(
            f"The two do not compute the same, so that there is nothing to compare: {found}; losses {loss}, {other_loss}"
        )
    return found


def take_times(
    sides: dict[str, Side], variants: Sequence[str], updates: int
) -> dict[str, list[tuple[float, float]]]:
    """(seconds by the clock, seconds of processor time) of each update, in turns, the order turned round
    every time.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for number in range(updates):
        for name in variants[:: -1 if number % 2 else 1]:
            side = sides[name.split("-")[0]]
            side.recompute(name in RECOMPUTING)
            started = time.perf_counter(), time.process_time()
            side.update()
            times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            side.model.zero_grad(set_to_none=True)
        print(
            f"  {number + 1} of {updates}: { ({name: taken[-1] for name, taken in times.items()}) }",
            file=sys.stderr,
            flush=True,
        )
    return times


def resident(field: str) -> float:
    """MiB in memory: VmRSS now, VmHWM at the most so far. (getrusage's peak would start at that of the
    parent.)
    """
    with open("/proc/self/status") as status:
        found = re.search(rf"{field}:\s+(\d+)", status.read())
    assert found is not None
    return int(found[1]) / 1024


def take_peak(name: str, settings: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: one update of one variant."""
    policy = our_policy(settings.model)
    groups = random_groups(settings.prompts, policy.model.config.vocab_size)
    behaviour = behaviour_logps(policy, groups, NOISE[settings.objective])
    if name.startswith("trl"):
        del policy
        gc.collect()
        side = trl_side(settings.model, settings.objective, groups, behaviour)
    else:
        side = our_side(policy, OBJECTIVES[settings.objective], groups, behaviour)
    side.recompute(name in RECOMPUTING)
    weights = sum(p.numel() * p.element_size() for p in side.model.parameters()) / 2**20
    with_moments = resident("VmRSS")
    side.update()
    rise = resident("VmHWM") - with_moments
    return {"above_model": rise + 2 * weights, "without_fixed": rise - weights}


# --- the command ---


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--objective", choices=OBJECTIVES, default="grpo")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument(
        "--peak", choices=VARIANTS, help=argparse.SUPPRESS
    )  # what the processes of their own run
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    quiet_transformers()
    if settings.peak:
        print(json.dumps(take_peak(settings.peak, settings)))
        return
    result: dict[str, Any] = {"objective": settings.objective, "threads": torch.get_num_threads()}
    if settings.only != "memory":
        result |= measure_times(settings)
    if settings.only != "time":
        result["peak_mib"] = {name: peak_of_process(name, settings) for name in settings.variants}
    print(json.dumps(result) if settings.json else "\n".join(sentences(result)))


def measure_times(settings: argparse.Namespace) -> dict[str, Any]:
    policy = our_policy(settings.model)
    groups = random_groups(settings.prompts, policy.model.config.vocab_size)
    behaviour = behaviour_logps(policy, groups, NOISE[settings.objective])
    sides = {
        "preftune": our_side(policy, OBJECTIVES[settings.objective], groups, behaviour),
        "trl": trl_side(settings.model, settings.objective, groups, behaviour),
    }
    size = float(trl_inputs(settings.objective, groups, behaviour)["advantages"].abs().mean())
    agreement = check_agreement(sides["preftune"], sides["trl"], size)
    print(f"  loss and gradient agree: {agreement}", file=sys.stderr, flush=True)
    times = take_times(sides, settings.variants, settings.updates)
    lengths = [len(ids) for group in groups for ids in group.completions]
    ours = sum(len(group.prompt) for group in groups) + sum(lengths) - len(lengths)
    theirs = len(lengths) * (max(len(group.prompt) for group in groups) + max(lengths))
    return {
        "completions": len(lengths),
        "positions": {"preftune": ours, "trl": theirs},
        "scored_tokens": sum(lengths),
        "agreement": agreement,
        "seconds": times,
    }


def peak_of_process(name: str, settings: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--peak",
        name,
        "--model",
        settings.model,
        "--objective",
        settings.objective,
        "--prompts",
        str(settings.prompts),
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def sentences(result: dict[str, Any]) -> list[str]:
    found = [f"{result['objective']}, {result['threads']} thread(s)"]
    if "agreement" in result:
        found.append(
            "relative difference of the loss {loss:.1e}, of the gradient {gradient:.1e}".format(
                **result["agreement"]
            )
        )
        found.append("positions of an update: {preftune} here, {trl} in TRL".format(**result["positions"]))
    seconds = {name: np.array(times) for name, times in result.get("seconds", {}).items()}
    for name, times in seconds.items():
        rates = result["completions"] / np.median(times, axis=0)
        found.append(f"{name}: {rates[0]:.2f} completions/s by the clock, {rates[1]:.2f} by processor time")
    pairs = [(ours, theirs) for ours in VARIANTS[:2] for theirs in VARIANTS[2:]]
    for ours, theirs in pairs:
        if ours in seconds and theirs in seconds:
            (low, middle, high), (_, processor, _) = np.quantile(
                seconds[theirs] / seconds[ours], [0.25, 0.5, 0.75], axis=0
            ).T
            found.append(
                f"{ours} does {middle:.2f} times the completions/s of {theirs} (quartiles {low:.2f} to {high:.2f}), "
                f"{processor:.2f} times by processor time"
            )
    peaks = result.get("peak_mib", {})
    for name, peak in peaks.items():
        found.append(
            f"{name}: peak of {peak['above_model']:.0f} MiB above the model, {peak['without_fixed']:.0f} MiB without "
            "gradients and moments"
        )
    for ours, theirs in pairs:
        if ours in peaks and theirs in peaks:
            whole, rest = (peaks[ours][key] / peaks[theirs][key] for key in ("above_model", "without_fixed"))
            found.append(
                f"{ours} has {whole:.2f} times the peak of {theirs}, {rest:.2f} times without gradients and moments"
            )
    return found


if __name__ == "__main__":
    main()
