"""Everything that a run needs before its first step: policy, groups, reference, optimiser, and the checks at step 0."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from preftune.data.pack import split_micro_batches
from preftune.data.prepare import Prepared, prepare
from preftune.data.signals import SignalName
from preftune.errors import DataError
from preftune.objectives import Objective
from preftune.policy.adapters import inject_lora
from preftune.policy.bundled import cache_folder
from preftune.policy.load import check_same_tokeniser, load_model, load_tokenizer, pick_device, resolve_model
from preftune.policy.policy import Policy, choose_sharing, score_groups, use_gradient_checkpointing
from preftune.policy.reference import ReferenceStore, RefLogps, adapter_off, check_equal, fill_store, weights_digest
from preftune.train.batches import ReferenceLogps
from preftune.train.optim import make_optimiser
from preftune.train.options import TrainConfig
from preftune.train.progress import Reporter
from preftune.train.sources import OfflineSource, hold_out
from preftune.types import Group, Labels, Pairs, Rewards

# Nats per token between two passes that must agree: rounding in another order, far below any real difference.
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
_SIGNAL_NAMES: dict[type, SignalName] = {Pairs: "pairs", Labels: "labels", Rewards: "rewards"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A run, ready to start."""

    config: TrainConfig
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    source: OfflineSource
    eval_groups: Sequence[Group]
    reference: ReferenceLogps | None
    optimiser: torch.optim.Optimizer
    prepared: Prepared
    num_steps: int


def load_policy(config: TrainConfig, report: Reporter) -> tuple[Policy, str]:
    """The policy at its start, its layout proven, adapters injected; and the digest of its weights without adapters."""
    torch.manual_seed(config.seed)
    frozen_low = config.precision == "bf16" and config.lora.rank > 0
    dtype = torch.bfloat16 if frozen_low else torch.float32
    model = load_model(resolve_model(config.model), config.loading, dtype).to(pick_device(config.device))  # type: ignore[arg-type]
    sharing, reason = choose_sharing(model, config.layout.share_prompts)
    report.note(f"layout: {sharing} rows" + (f" ({reason})" if reason else ""))
    digest = weights_digest(model)  # before the adapters, which change nothing yet: one cache serves every rank and seed
    peft_model: Any = inject_lora(model, config.lora) if config.lora.rank else None
    if peft_model is not None:
        peft_model.eval()
    if config.gradient_checkpointing:
        use_gradient_checkpointing(model)
    policy = Policy(
        model=model, precision=config.precision, sharing=sharing, sharing_reason=reason, peft_model=peft_model
    )
    return policy, digest


def prepare_groups(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Prepared, list[Group], list[Group]]:
    """(what was read, training groups, held-out groups)."""
    objective = config.objective
    signal = _SIGNAL_NAMES[objective.signal]
    prepared = prepare(config.data, tokenizer, signal, config.rows)
    if config.eval_data is not None:
        train, held = list(prepared.groups), list(prepare(config.eval_data, tokenizer, signal, config.rows).groups)
    else:
        train, held = hold_out(prepared.groups, config.eval_fraction, config.seed)
    train = [group for group in map(lambda g: needed_completions(g, objective), train) if group is not None]
    if not train:
        raise DataError(f"{config.data} has nothing for this objective to learn from",
                        got=f"{len(prepared.groups)} groups without a preferred completion",
                        expected="preferred completions or pairs")  # fmt: skip
    return prepared, train, held


def needed_completions(group: Group, objective: Objective) -> Group | None:
    """A labelled group without the completions on which the objective puts no weight (SFT: the dispreferred ones)."""
    if objective.signal is not Labels:
        return group
    lengths = torch.ones(1, dtype=torch.long)
    counted = {label: bool(objective.weights(lengths, Labels(label=torch.tensor([label]))).sum() > 0) for label in (1, -1)}
    keep = [k for k, label in enumerate(group.labels) if label is not None and counted[label]]
    if len(keep) == len(group.completions):
        return group
    if not keep:
        return None
    return replace(
        group, completions=tuple(group.completions[k] for k in keep), labels=tuple(group.labels[k] for k in keep),
        rewards=tuple(group.rewards[k] for k in keep) if group.rewards else (), pairs=(),
    )  # fmt: skip


def build_reference(
    config: TrainConfig, policy: Policy, start_digest: str, groups: Sequence[Group], report: Reporter
) -> ReferenceLogps:
    """How the reference's numbers are had during the run; the cache is filled here."""
    layout, options = config.layout, config.reference
    if options.mode == "adapter":
        def off(part: Sequence[Group]) -> RefLogps:
            with adapter_off(policy):
                return score_groups(policy, part, layout)
        return off
    if options.model is not None:
        model = load_model(resolve_model(options.model), config.loading, policy.model.dtype).to(policy.device)  # type: ignore[arg-type]
        sharing, reason = choose_sharing(model, layout.share_prompts)
        reference = replace(policy, model=model, sharing=sharing, sharing_reason=reason, peft_model=None)
        digest = weights_digest(model)
    else:
        reference, digest = policy, start_digest
    if options.mode == "live":
        frozen = reference if options.model is not None else replace(policy, model=_start_copy(policy), peft_model=None)
        frozen.model.requires_grad_(False)
        return lambda part: score_groups(frozen, part, layout)
    store = ReferenceStore(cache_folder() / "references" / f"{digest[:32]}-{config.precision}")
    fresh = fill_store(store, reference, groups, layout, lambda done, of: report.update("reference", done, of))
    report.note(f"reference: {fresh} groups computed, {len(groups) - fresh} from the cache")
    _check_cache(store, reference, groups, config)
    return lambda part: [store.get(group) for group in part]


def _start_copy(policy: Policy) -> Any:
    if policy.peft_model is None:
        return copy.deepcopy(policy.model)
    return copy.deepcopy(policy.peft_model).unload()  # the base without its adapter


def _check_cache(store: ReferenceStore, reference: Policy, groups: Sequence[Group], config: TrainConfig) -> None:
    """Recompute a few groups: a stale or damaged cache, or a policy that is not its own reference, stops here."""
    chosen = np.random.default_rng(config.seed).permutation(len(groups))[:4]
    few = [groups[i] for i in chosen]
    for indices in split_micro_batches(few, config.layout, reference.sharing):
        part = [few[i] for i in indices]
        check_equal(
            [store.get(group) for group in part], score_groups(reference, part, config.layout), part,
            _TOLERANCE[config.precision], "The cached reference differs from the model",
            f"Delete {store.folder} and start again",
        )  # fmt: skip


def check_start(job: Job) -> float | None:
    """Step 0: policy = reference, so every log-ratio is 0 and DPO's loss is ln 2. Returns the largest difference seen.

    Nothing to check with another model as reference, or without one.
    """
    config = job.config
    if job.reference is None or config.reference.model is not None:
        return None
    few = job.source.take(1)[:4]
    worst = 0.0
    for indices in split_micro_batches(few, config.layout, job.policy.sharing):
        part = [few[i] for i in indices]
        worst = max(worst, check_equal(
            job.reference(part), score_groups(job.policy, part, config.layout), part, _TOLERANCE[config.precision],
            "At step 0 the policy is not its reference", "Please report this with the model's name",
        ))  # fmt: skip
    return worst


def build_job(config: TrainConfig, report: Reporter) -> Job:
    """Cheap checks first: data before the model's weights, so that a bad row costs seconds."""
    tokenizer = load_tokenizer(resolve_model(config.model), config.loading)
    if config.reference.model is not None:
        check_same_tokeniser(config.model, config.reference.model, config.loading)
    prepared, train, held = prepare_groups(config, tokenizer)
    for line in prepared.report.lines():
        report.note(line)
    report.note(f"{len(train)} groups to train on, {len(held)} held out")
    policy, start_digest = load_policy(config, report)
    source = OfflineSource(groups=train, batch_size=config.batch_size, seed=config.seed)
    steps = max(1, round(config.epochs * source.steps_per_epoch))
    num_steps = min(steps, config.max_steps) if config.max_steps else steps
    needs_reference = "ref_logp" in config.objective.needs
    reference = None
    if needs_reference or held:
        scored = [*source.visited(num_steps), *held] if needs_reference else held
        reference = build_reference(config, policy, start_digest, scored, report)
    job = Job(
        config=config, policy=policy, tokenizer=tokenizer, source=source, eval_groups=held, reference=reference, prepared=prepared,
        optimiser=make_optimiser(policy.trainable().values(), config.optim),
        num_steps=num_steps,
    )  # fmt: skip
    if needs_reference:
        check_start(job)
    return job
