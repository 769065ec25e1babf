"""LoRA through peft: low-rank adapters injected into a model whose own weights are frozen."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from preftune.errors import ConfigError, check_range


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters instead of full fine-tuning.

    Args:
        rank: rank of the adapters; 0 trains all weights.
        alpha: the update is scaled by alpha / rank; twice the rank when not given.
        target_modules: names of the layers that get an adapter; all linear layers but the head when empty.
    """

    rank: int = 0
    alpha: float | None = None
    target_modules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_range(self, "[0, inf)", "rank", prefix="lora.", expected="0 (off) or more")
        if self.rank == 0 and (self.alpha is not None or self.target_modules):
            raise ConfigError(
                "lora.alpha and lora.target_modules have no effect",
                got="lora.rank 0",
                do="Set --lora.rank, for example 16, or leave them out",
            )
        check_range(self, "(0, inf)", "alpha", prefix="lora.")


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Within, peft's use of names that transformers has renamed is no news for the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield


def inject_lora(model: PreTrainedModel, options: LoraOptions) -> Any:
    """Freeze the model and inject adapters whose update starts at zero; returns the peft.PeftModel around it."""
    import peft  # most runs train all weights, and start without it

    targets = options.target_modules or "all-linear"
    if "lm_head" in options.target_modules:
        raise ConfigError(
            "lora.target_modules: an adapter on the head is not supported",
            got="lm_head",
            expected="layers of the body",
            do="Leave lm_head out",
        )
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=0.0,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    try:
        with quiet_peft():
            return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            "lora.target_modules names no layer of the model",
            got=", ".join(options.target_modules),
            expected="names such as q_proj, v_proj",
            do=str(error).split(". ")[0],
        ) from error
