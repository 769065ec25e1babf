"""Checks across the sections of a training run's settings; each takes the sections that it compares."""

from dataclasses import replace

from preftune.errors import ConfigError, refuse_idle
from preftune.measures.ches import parse_filter
from preftune.model.adapters import LoraOptions
from preftune.model.reference import REFERENCE_SCORES, VOCABULARY_SCORES, ReferenceOptions
from preftune.model.shard import ShardOptions
from preftune.objectives import OBJECTIVES, Objective, objective_name
from preftune.objectives.base import smallest_step
from preftune.train.optim import OptimOptions
from preftune.types import Labels, Pairs


def check_low_weights(
    optim: OptimOptions, precision: str, lora: LoraOptions, shard: ShardOptions, reference: ReferenceOptions
) -> None:
    """Refuse settings that `optim.weights` bf16 does not support."""
    if optim.weights != "bf16":
        return
    if precision != "bf16":
        raise ConfigError(
            "optim.weights bf16 computes in bf16",
            got=f"precision {precision}",
            expected="bf16",
            do="Set --precision bf16",
        )
    if lora.rank:
        raise ConfigError(
            "optim.weights has no effect on adapters: what is frozen is in bf16 already",
            got=f"lora.rank {lora.rank}",
            do="Leave it out",
        )
    if shard.mode != "none":
        raise ConfigError(
            "optim.weights bf16 sums gradients in fp32, which a model in shards cannot",
            got=f"shard.mode {shard.mode}",
            do="Leave one out",
        )
    if reference.update_every and reference.update_rate < 1:
        raise ConfigError(
            "A reference in bf16 cannot follow in parts of a step: they are lost in rounding",
            got=f"reference.update_rate {reference.update_rate:g} with optim.weights bf16",
            expected="update_rate 1, or optim.weights fp32",
        )


def check_batch_size(objective: Objective, batch_size: int) -> None:
    """Whether a step holds enough groups for an objective that compares completions with each other."""
    if batch_size < smallest_step(objective):
        raise ConfigError(
            f"{objective_name(objective)} compares completions with those of other prompts of the step",
            got=f"batch_size {batch_size}",
            expected=f"at least {smallest_step(objective)}",
            do="Raise --batch_size",
        )


def check_critic(objective: Objective, critic: str | None, optim: OptimOptions, shard: ShardOptions) -> None:
    """Settings of a critic need one; a separate network starts as a reward model, and stays whole."""
    name = objective_name(objective)
    if "value" not in objective.needs:
        where = "on an objective without a critic"
        refuse_idle(optim, where, "value_learning_rate", prefix="optim.", got=name)
        if critic is not None:
            raise ConfigError(f"critic has no effect {where}", got=name, do="Leave it out")
    if critic is None:
        return
    if not objective.values_are_returns:
        raise ConfigError(
            "A critic that starts as a reward model predicts returns as they are",
            got="objective.normalize_returns true",
            expected="false",
            do="Set --objective.normalize_returns false",
        )
    if shard.mode != "none" or optim.weights != "fp32":
        raise ConfigError(
            "A separate critic trains whole and in fp32",
            got=f"shard.mode {shard.mode}, optim.weights {optim.weights}",
            expected="shard.mode none and optim.weights fp32",
            do="Leave critic out, or these two",
        )


def check_shards(optim: OptimOptions, shard: ShardOptions) -> None:
    """Optimizers that see whole matrices, or that no test covers in parts, need whole weights."""
    if shard.mode != "none" and optim.name != "adamw":
        raise ConfigError(
            f"optim.name {optim.name} does not work on a model in shards",
            got=f"shard.mode {shard.mode}",
            expected="optim.name adamw",
            do="Leave one out",
        )


def check_quantization(lora: LoraOptions, shard: ShardOptions) -> None:
    """Quantized weights stay whole."""
    if lora.quantization != "none" and shard.mode != "none":
        raise ConfigError(
            "lora.quantization does not work on a model in shards",
            got=f"shard.mode {shard.mode}",
            expected="shard.mode none",
            do="Leave one out",
        )


def check_own_objective(objective: Objective) -> None:
    """A class that is not in the table is held against the contracts that training relies on."""
    if type(objective) not in OBJECTIVES.values():
        from preftune.objectives.contracts.checks import refuse_broken

        refuse_broken(objective, objective_name(objective))


def check_filter(expression: str | None, source: str, objective: Objective) -> None:
    """CHES is of the two completions of a pair, and predicts how likely they will be."""
    if expression is None:
        return
    parse_filter(expression)
    if source == "on-policy":
        raise ConfigError(
            "filter has no effect on-policy", got=expression, expected="pairs in a file", do="Leave it out"
        )
    if objective.signal not in (Pairs, Labels) or objective.trains == "reward model":
        raise ConfigError(
            "filter has no effect on this objective: it leaves out pairs by the likelihood they will lose",
            got=objective_name(objective),
            expected="an objective on pairs or labels of a policy",
            do="Leave it out",
        )


def check_anchors(objective: Objective, reference: ReferenceOptions, source: str) -> None:
    """Check that the objective's inputs exist and that every setting has an effect."""
    name, needs = objective_name(objective), objective.needs
    if "behaviour_value" in needs and source == "offline":
        raise ConfigError(
            f"{name} needs the critic's values at the time of sampling",
            got="data from a file",
            do="Leave out the clipping of values, or set --source on-policy",
        )
    if "contrast" in needs and reference.contrast_positive is None:
        raise ConfigError(
            f"{name} weights tokens by the contrast of two models",
            got="no models",
            do="Set --reference.contrast_positive MODEL and --reference.contrast_negative MODEL",
        )
    if "contrast" not in needs:
        refuse_idle(
            reference,
            f"on {name}",
            "contrast_positive",
            prefix="reference.",
            do="Leave it and reference.contrast_negative out",
        )
    anchor = replace(reference, contrast_positive=None, contrast_negative=None)
    if not needs & REFERENCE_SCORES and anchor != ReferenceOptions():
        raise ConfigError(
            "reference has no effect: the objective has no reference", got=name, do="Leave out --reference"
        )
    wide = sorted(needs & VOCABULARY_SCORES)
    if wide and reference.mode == "cache":
        raise ConfigError(
            f"{name} needs the reference's distribution over the whole vocabulary",
            got="reference.mode cache",
            expected="auto, live or adapter",
            do="Leave out --reference.mode",
        )
