"""The second stage of the set-up: the policy at its start, and how completions are drawn from it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.errors import ConfigError
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.classifier import check_classifier
from preftune.model.critic import with_critic
from preftune.model.device import pick_device
from preftune.model.device_defaults import device_line, facts_of
from preftune.model.kernels.products import has_bf16
from preftune.model.kernels.recompute import check_recomputes
from preftune.model.layout import LayoutOptions
from preftune.model.load import load_model, resolve_model, stored_dtype, weights_dtype
from preftune.model.load_classifier import is_classifier, load_reward_start
from preftune.model.policy import Policy, in_shards, make_value_head
from preftune.model.proof import check_trains, choose_layout
from preftune.model.quantize import check_device, is_quantized
from preftune.model.reference import weights_digest
from preftune.model.router_search import find_router
from preftune.model.shard import ShardOptions
from preftune.model.whole_model import LoadOptions, unused_note
from preftune.progress import Reporter
from preftune.sampling.engine import Engine, choose_engine
from preftune.sampling.sample import evaluating
from preftune.train.processes import Processes
from preftune.train.rounding import sum_gradients_exactly


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Which model trains, how it is held, and what it computes in."""

    model: str
    loading: LoadOptions
    device: str
    precision: Literal["fp32", "bf16"]
    seed: int  # of the adapters
    layout: LayoutOptions
    lora: LoraOptions
    longest: int  # tokens of a row, at most
    shard: ShardOptions
    low_weights: bool  # whether all weights train in bf16
    gradient_checkpointing: bool
    classifies: bool  # whether it becomes a reward model
    save_dtype: Literal["auto", "bf16", "fp16", "fp32"]
    value_heads: int  # how many scalar heads it gets
    critic: str | None  # the reward model that a separate critic starts as
    router_aux_loss_coef: float | None  # None: the model's own
    draws: bool  # whether completions are drawn in this process


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """The policy at its start."""

    policy: Policy
    start_digest: str  # of its weights without adapters
    engine: Engine  # that draws
    saved: torch.dtype  # of the weights in final/


def load_models(plan: ModelPlan, report: Reporter, processes: Processes) -> Models:
    """The policy, cut up if it is to be, and the engine, which is proven before."""
    if line := _device_note(plan):
        report.note(line)

    def proven() -> tuple[Policy, str, Engine]:
        policy, digest = load_policy(plan, report, processes.lockstep)
        if plan.critic is not None:
            policy = with_critic(policy, plan.critic, plan.model, plan.loading, plan.layout, plan.longest)
        return policy, digest, _proven_engine(policy, report) if plan.draws else "shared"

    policy, digest, engine = processes.models_from_main(proven)
    if processes.lockstep:
        policy = in_shards(policy, plan.shard, pick_device(plan.device))
    saved = _saved_dtype(plan)
    if saved != torch.float32:
        report.note(f"final/ will be in {str(saved).removeprefix('torch.')}")
    return Models(policy=policy, start_digest=digest, engine=engine, saved=saved)


def _saved_dtype(plan: ModelPlan) -> torch.dtype:
    """The dtype of final/: with "auto" that of the model's files, for adapters fp32, which their updates need."""
    if plan.save_dtype != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.save_dtype]
    if plan.low_weights:
        return torch.bfloat16
    if plan.lora.rank and not plan.classifies:
        return torch.float32
    return stored_dtype(resolve_model(plan.model), plan.loading)


def load_policy(plan: ModelPlan, report: Reporter, lockstep: bool = False) -> tuple[Policy, str]:
    """The policy at its start, its layout proven, adapters injected; and the digest of its weights without
    adapters.

    One that will be cut up is still whole, and on the CPU: it may not fit on the device.
    """
    torch.manual_seed(plan.seed)
    low = plan.low_weights or (
        plan.precision == "bf16" and plan.lora.rank > 0
    )  # with adapters, what is frozen
    dtype = weights_dtype("bf16" if low else "fp32")
    device = torch.device("cpu") if lockstep else pick_device(plan.device)
    model, reward_head = _start(plan, dtype)
    if line := unused_note(model):
        report.note(line)
    if is_quantized(model):
        _check_quantized(plan, model)
    else:
        model = model.to(device)  # type: ignore[arg-type]
    if plan.classifies:
        check_classifier(model)
    if plan.precision == "bf16" and device.type == "cpu" and not has_bf16():
        report.note(
            "precision: this processor has no bf16 products and computes them in fp32: bf16 saves memory here, not time"
        )
    computes_on = pick_device(plan.device)  # of a model in shards, not where it lies now
    sharing, reason = choose_layout(model, plan.layout, plan.precision, plan.longest, computes_on)
    report.note(f"layout: {sharing} rows" + (f" ({reason})" if reason else ""))
    check_trains(model, sharing, plan.precision)
    router, line = find_router(model, plan.router_aux_loss_coef)
    if line:
        report.note(line)
    digest = weights_digest(
        model
    )  # before the adapters, which change nothing yet: one cache serves every rank and seed
    if plan.low_weights:
        sum_gradients_exactly(model.parameters())
    peft_model: Any = inject_lora(model, plan.lora) if plan.lora.rank else None
    if peft_model is not None:
        peft_model.eval()
    if plan.gradient_checkpointing:
        _check_recomputation(model, plan.lora.dropout)
    policy = Policy(
        model=model,
        precision=plan.precision,
        sharing=sharing,
        sharing_reason=reason,
        peft_model=peft_model,
        value_head=_value_head(plan, model, reward_head),
        kept_positions=0 if plan.gradient_checkpointing else plan.layout.micro_batch_tokens,
        router=router,
        quantization=plan.lora.quantization,
    )
    return policy, digest


def layout_record(policy: Policy) -> dict[str, Any]:
    """Rows and attention that were chosen at the start, why, and the heads that they are for."""
    config = policy.model.config.get_text_config()
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window")
    heads = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    attention = str(config._attn_implementation).removeprefix("preftune_")
    return {"rows": policy.sharing, "attention": attention, "reason": policy.sharing_reason, **heads}


def _check_recomputation(model: PreTrainedModel, dropout: float) -> None:
    check_recomputes(model)
    if dropout:
        raise ConfigError(
            "lora.dropout does not go with gradient_checkpointing",
            got=f"lora.dropout {dropout:g}",
            expected="0, since what is computed twice must be the same twice",
            do="Leave one of the two out",
        )


def _device_note(plan: ModelPlan) -> str:
    """The device and the settings that follow it."""
    values = {
        "precision": plan.precision,
        "layout.micro_batch_tokens": plan.layout.micro_batch_tokens,
        "gradient_checkpointing": plan.gradient_checkpointing,
    }
    return device_line(facts_of(pick_device(plan.device)), values)


def _start(plan: ModelPlan, dtype: torch.dtype) -> tuple[PreTrainedModel, Tensor | None]:
    """The model, and the head of a reward model that is trained further."""
    source = resolve_model(plan.model)
    if plan.classifies and is_classifier(source, plan.loading):
        return load_reward_start(source, plan.loading, dtype)
    device = pick_device(plan.device)
    check_device(plan.lora.quantization, device)
    return load_model(source, plan.loading, dtype, plan.lora.quantization, device), None


def _value_head(plan: ModelPlan, model: PreTrainedModel, start: Tensor | None) -> nn.Linear | None:
    """The scalar heads, if any: new ones, or those of the reward model that is trained further."""
    if start is not None and len(start) != plan.value_heads:
        raise ConfigError(
            "A reward model that is trained further keeps its heads",
            got=f"heads {plan.value_heads}",
            expected=f"the {len(start)} of {plan.model}",
            do=f"Set --heads {len(start)}",
        )
    return make_value_head(model, start, plan.value_heads, plan.seed) if plan.value_heads else None


def _check_quantized(plan: ModelPlan, model: PreTrainedModel) -> None:
    """An error where quantized weights would have to train."""
    if not plan.lora.rank or plan.classifies:
        what = "a reward model" if plan.classifies else "all weights"
        raise ConfigError(
            f"{plan.model} has quantized weights, which do not train",
            got=f"training of {what}",
            expected="adapters of a language model",
            do="Set --lora.rank 16, or name the model before quantization",
        )


def _proven_engine(policy: Policy, report: Reporter) -> Engine:
    with evaluating(policy.model):
        engine, reason = choose_engine(policy.model)
    if reason:
        report.note(f"sampling: prompts are {engine} for every completion ({reason})")
    return engine
