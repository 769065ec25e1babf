"""LoRA through peft: low-rank adapters injected into a model whose own weights are frozen."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.model.quantize import Quantization

AdapterStart = Literal["zero", "gaussian", "pissa", "pissa_niter_16", "olora"]

_FUSED = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_MOVES_BASE = ("pissa", "pissa_niter_16", "olora")
"""Starts that take the adapter's first value out of the frozen weights."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters instead of full fine-tuning.

    Args:
        rank: rank of the adapters; 0 trains all weights.
        alpha: the update is scaled by alpha / rank; twice the rank when not given.
        target_modules: names of the layers that get an adapter, as a list, separated by commas, or
            "all-linear"; all linear layers but the head when empty.
        dropout: share of an adapter's inputs that is dropped in training.
        rslora: scale the update by alpha / sqrt(rank) (rank-stabilized LoRA, arXiv 2312.03732).
        dora: learn the size of each weight row apart from its direction (DoRA, arXiv 2402.09353).
        start: how adapters start. "zero" and "gaussian" differ in the first factor and change nothing at the
            start; "pissa" (arXiv 2404.02948), "pissa_niter_16" (its fast form) and "olora" (arXiv 2406.01775)
            start from a factorization of the weights, which they take out of the frozen model.
        modules_to_save: names of modules that train whole and are saved with the adapter, such as lm_head.
        target_parameters: names of parameters that get an adapter, for fused experts, such as
            mlp.experts.gate_up_proj.
        trainable_tokens: token ids whose embedding rows train.
        quantization: of the frozen weights: "int8" or "int4" by torchao, "nf4" or "bnb-int8" by bitsandbytes.
    """

    rank: int = 0
    alpha: float | None = None
    target_modules: list[str] | str = field(default_factory=list)
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    start: AdapterStart = "zero"
    modules_to_save: list[str] | str = field(default_factory=list)
    target_parameters: list[str] | str = field(default_factory=list)
    trainable_tokens: list[int] = field(default_factory=list)
    quantization: Quantization = "none"

    def __post_init__(self) -> None:
        check_range(self, "[0, inf)", "rank", prefix="lora.", expected="0 (off) or more")
        if self.rank == 0 and (self.alpha is not None or self.target_modules):
            raise ConfigError(
                "lora.alpha and lora.target_modules have no effect",
                got="lora.rank 0",
                do="Set --lora.rank, for example 16, or leave them out",
            )
        if self.rank == 0:
            refuse_idle(
                self, "without adapters", *_EXTRAS, prefix="lora.", got="lora.rank 0", do="Set --lora.rank"
            )
        check_range(self, "(0, inf)", "alpha", prefix="lora.")
        check_range(self, "[0, 1)", "dropout", prefix="lora.")
        if self.dora and self.start in _MOVES_BASE:
            raise ConfigError(
                "lora.start does not fit lora.dora", got=self.start, expected="zero or gaussian"
            )
        if self.quantization != "none" and (self.start in _MOVES_BASE or self.dora or self.target_parameters):
            raise ConfigError(
                "Adapters over quantized weights are plain LoRA",
                got="lora.quantization with lora.start, lora.dora or lora.target_parameters",
                do="Leave these out",
            )
        if self.target_parameters and (self.dora or self.dropout or self.start in _MOVES_BASE):
            raise ConfigError(
                "Adapters of parameters are plain LoRA",
                got="lora.target_parameters with lora.dora, lora.dropout or lora.start",
                do="Leave these out",
            )


_EXTRAS = ("dropout", "rslora", "dora", "start", "modules_to_save", "target_parameters", "trainable_tokens")
_EXTRAS += ("quantization",)


def as_names(value: list[str] | str) -> list[str]:
    """Names given as a list or separated by commas."""
    words = value.split(",") if isinstance(value, str) else value
    return [word.strip() for word in words if word.strip()]


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence peft's warnings about names that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        for message in ("The following (rank|alpha)_pattern keys", "target_parameters=.* were set"):
            warnings.filterwarnings("ignore", message=message, category=RuntimeWarning)
        warnings.filterwarnings(
            "ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning
        )
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        yield


def inject_lora(model: PreTrainedModel, options: LoraOptions) -> Any:
    """Freeze the model and inject adapters that change nothing at the start; returns the peft.PeftModel
    around it.
    """
    import peft  # most runs train all weights, and start without it

    names, parameters = as_names(options.target_modules), as_names(options.target_parameters)
    whole = as_names(options.modules_to_save)
    if "lm_head" in names:
        raise ConfigError(
            "lora.target_modules: an adapter on the head is not supported",
            got="lm_head",
            expected="layers of the body",
            do="Leave lm_head out, or train it whole with --lora.modules_to_save '[lm_head]'",
        )
    targets: Any = names or ([] if parameters else "all-linear")
    if names == ["all-linear"]:
        targets = "all-linear"
    _check_names(model, "modules_to_save", whole)
    _check_parameters(model, parameters)
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=True if options.start == "zero" else options.start,  # type: ignore
        modules_to_save=whole or None,
        target_parameters=parameters or None,
        exclude_modules=_not_for_adapters(model) or None if targets == "all-linear" else None,
        trainable_token_indices=options.trainable_tokens or None,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    try:
        with quiet_peft():
            peft_model = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            "lora.target_modules names no layer of the model",
            got=", ".join([*names, *parameters]),
            expected="names such as q_proj, v_proj",
            do=str(error).split(". ")[0],
        ) from error
    except (IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ConfigError(
            "peft cannot make these adapters for the model", got=" ".join(str(error).split())[:160]
        ) from error
    _check_ties(model)
    if options.start in _MOVES_BASE:
        peft_model.start_weights = {  # type: ignore
            name: parameter.detach().clone()
            for name, parameter in peft_model.named_parameters()
            if ".lora_" in name
        }
    return peft_model


def _not_for_adapters(model: PreTrainedModel) -> list[str]:
    """Linear layers that compute something else (routers of experts, grouped products), and projections that
    fused kernels read past their module.
    """
    fused = {"out_proj", "conv1d"} if getattr(model.config, "model_type", "") in _FUSED else set[str]()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (name.rpartition(".")[2] in fused or not _is_product(module))
    ]


@torch.no_grad()
def _is_product(module: nn.Linear) -> bool:
    """Whether the module, if its class is one of the model's own, computes the product with its weight."""
    if type(module) is nn.Linear or not type(module).__module__.startswith("transformers.models."):
        return True
    probe = torch.linspace(
        -1, 1, 2 * module.in_features, dtype=module.weight.dtype, device=module.weight.device
    )
    probe = probe.reshape(1, 2, module.in_features)
    try:
        return torch.allclose(module(probe), linear(probe, module.weight, module.bias), rtol=1e-2, atol=1e-3)
    except Exception:  # the code of a model may fail in any way
        return False


def _check_parameters(model: nn.Module, names: list[str]) -> None:
    known = [name for name, _ in model.named_parameters()]
    for name in names:
        if not any(parameter == name or parameter.endswith(f".{name}") for parameter in known):
            raise ConfigError(
                "lora.target_parameters names no parameter of the model",
                got=name,
                expected="names such as mlp.experts.gate_up_proj",
            )


def _check_names(model: nn.Module, option: str, names: list[str]) -> None:
    known = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in known):
            raise ConfigError(
                f"lora.{option} names no module of the model", got=name, expected="names such as lm_head"
            )


def _check_ties(model: PreTrainedModel) -> None:
    """Refuse adapters on an embedding that is the head as well: the saved model would be another one."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and any(module is not None and _is_wrapped(module) for module in (embedding, head)):
        raise ConfigError(
            "lora: the embedding and the head of this model are one matrix, which cannot have an adapter",
            got=type(embedding).__name__,
            expected="layers between the embedding and the head",
            do="Leave the embedding and the head out, or train all weights with --lora.rank 0",
        )


def _is_wrapped(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


@contextmanager
def without_adapter(peft_model: Any) -> Iterator[None]:
    """Within, the model is its start: without its adapter, or with the adapter as it started where that is
    a part of the model.
    """
    start: dict[str, Tensor] | None = getattr(peft_model, "start_weights", None)
    if start is None:
        with peft_model.disable_adapter():
            yield
        return
    named = dict(peft_model.named_parameters())
    now = {name: named[name].detach().clone() for name in start}
    _write(named, start)
    try:
        yield
    finally:
        _write(named, now)


@torch.no_grad()
def _write(named: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        named[name].copy_(value)


def _dropouts(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if "lora_dropout" in name and isinstance(module, nn.Dropout) and module.p > 0
    ]


def has_dropout(model: nn.Module) -> bool:
    """Whether the adapters of the model drop some of their inputs in training."""
    return bool(_dropouts(model))


@contextmanager
def dropping_out(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within, the dropout of adapters is on, if it is wanted."""
    drops = _dropouts(model) if wanted else []
    for module in drops:
        module.train()
    try:
        yield
    finally:
        for module in drops:
            module.eval()


def unwrapped_head(head: nn.Module | None) -> nn.Module | None:
    """The linear layer of a head that trains whole: the trained copy, or the frozen one while adapters are off."""
    if head is None or type(head).__name__ != "ModulesToSaveWrapper":
        return head
    wrapper: Any = head
    if wrapper.disable_adapters:
        return wrapper.original_module
    (name,) = wrapper.active_adapters
    return wrapper.modules_to_save[name]
