"""Proofs at start-up: which layout and which attention score this model exactly."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from preftune.errors import ConfigError, ModelError
from preftune.model.attention_masks import FLEX, expressible, set_attention
from preftune.model.attention_segments import SEGMENTS, plain_attention
from preftune.model.kernels.widen import in_fp32
from preftune.model.layout import LayoutOptions, Sharing, collate
from preftune.model.policy import PROBE, hidden_states, model_head, to_device
from preftune.model.scoring import score_tokens
from preftune.types import Batch, Group

# Relative to the largest |logp|: far above rounding, far below what a leak or another head makes.
_PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_attention(options: LayoutOptions, device: torch.device) -> None:
    """An error if the attention that was asked for is not to be had on this device, before anything is loaded
    for it.
    """
    if options.attention == "flex" and device.type != "cuda":
        raise ConfigError(
            "layout.attention flex needs a CUDA device", got=str(device), do="Leave it out, or set it to sdpa"
        )


def choose_layout(model: PreTrainedModel, options: LayoutOptions, precision: str) -> tuple[Sharing, str]:
    """The layout and the attention function of a model's rows: (sharing, what is to be said of the two).

    The attention function is set in the model. FlexAttention is taken only where hidden states and a gradient
    are those of plain attention; that it is chosen, or why it is not where it could be, is said.
    """
    config, wanted, on_cuda = model.config.get_text_config(), options.attention, model.device.type == "cuda"
    check_attention(options, model.device)
    if wanted in ("sdpa", "segments") and plain_attention(config) == "eager":
        raise ConfigError(
            f"layout.attention {wanted} cannot express this model's soft-capped attention scores",
            got=type(model).__name__,
            expected="auto, flex or eager",
        )
    if wanted in ("sdpa", "eager"):
        set_attention(model, wanted)
    sharing, reason = choose_sharing(model, options.share_prompts)
    if wanted in ("sdpa", "eager", "segments") or not on_cuda:
        return sharing, reason
    rows: Sharing = (
        "shared" if sharing == "flat" else sharing
    )  # FlexAttention has kernels for rows of like length
    told = "it has no packed rows" if sharing == "single" else prove_flex(model, rows, precision)
    if told and wanted == "flex":
        raise ModelError(
            "layout.attention flex cannot be had for this model",
            got=told,
            do="Leave it out, or set it to sdpa",
        )
    if not told:
        return rows, f"{reason}; flex attention" if reason else "flex attention"
    return sharing, f"{reason + '; ' if reason else ''}plain attention instead of flex: {told}"


def prove_flex(model: PreTrainedModel, sharing: Sharing, precision: str) -> str:
    """Give the model FlexAttention if it changes nothing, and "" back; else leave it as it is and say why
    not.

    Hidden states and the gradient of one parameter are compared with those of the attention that the model
    has. Kernels are compiled for one row, for rows of a fixed number and width, and for any, each with and
    without gradients: what a run will meet is compiled here already.
    """
    plain, tolerance = str(model.config.get_text_config()._attn_implementation), _PROBE_TOLERANCE[model.dtype]
    if precision == "bf16":
        tolerance = _PROBE_TOLERANCE[torch.bfloat16]
    try:
        for groups, tokens in (([PROBE], 4), ([_WIDE_PROBE] * 2, 4), ([_WIDE_PROBE] * 6, 1920)):
            batch = to_device(
                collate(groups, LayoutOptions(micro_batch_tokens=tokens), sharing), model.device
            )
            expected = _states_and_gradient(model, batch, sharing, precision)
            set_attention(model, FLEX)
            found = _states_and_gradient(model, batch, sharing, precision)
            set_attention(model, plain)
            error = max(
                float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True)
            )
            if not error < tolerance:
                return f"it changes hidden states or gradients (by {error:.1g} relative)"
    except Exception as failure:  # a compiler for kernels runs here, which can fail in any way
        set_attention(model, plain)
        told = " ".join(str(failure).split())[:160]
        return f"it does not run ({type(failure).__name__}: {told})"
    set_attention(model, FLEX)
    return ""


def _states_and_gradient(
    model: PreTrainedModel, batch: Batch, sharing: Sharing, precision: str
) -> list[Tensor]:
    """Hidden states of the real positions; if the model trains, with a graph too, and the gradient of a small
    parameter.
    """
    real = batch.group_ids.flatten() >= 0
    small = next((p for p in model.get_decoder().parameters() if p.ndim == 1 and p.requires_grad), None)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        with torch.no_grad():
            found = [hidden_states(model, batch, sharing)[real].float()]
        if small is None:
            return found
        with torch.enable_grad():
            states = hidden_states(model, batch, sharing)[real].float()
            mix = torch.linspace(-1.0, 1.0, states.numel(), device=states.device).view_as(states)
            return [*found, states.detach(), torch.autograd.grad((mix * states).sum(), small)[0].float()]


def choose_sharing(model: PreTrainedModel, wanted: bool) -> tuple[Sharing, str]:
    """The densest layout that is exact for this model, proven on a small probe, and the reason if it is not
    the densest.

    The probe scores two completions of one prompt in every layout and compares with the model's own logits,
    one sequence at a time; so it also proves that the head is read as the model means it. It computes in
    fp32: rounding in 16 bits can be as large as what another layout would do wrong.
    """
    with in_fp32(model):
        return _choose_sharing(model, wanted)


def _choose_sharing(model: PreTrainedModel, wanted: bool) -> tuple[Sharing, str]:
    truth = _plain_logp(model, PROBE)
    order: tuple[Sharing, ...] = ("flat", "shared", "packed", "single")
    reason = ""
    if not wanted:
        order, reason = order[2:], "share_prompts is off"
    config = model.config.get_text_config()
    if config._attn_implementation != SEGMENTS and order[0] == "flat":
        order, reason = order[1:], f"its attention is {config._attn_implementation}"
    if not expressible(config):
        order, reason = (
            order[-1:],
            "its layers mix the positions of a row in ways that a mask cannot keep apart",
        )
    for sharing in order:
        try:
            error = _probe_error(model, sharing, truth)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            NotImplementedError,
        ) as failure:
            reason = f"its attention refuses an explicit mask ({type(failure).__name__})"
            continue
        if error < _PROBE_TOLERANCE[model.dtype]:
            return sharing, reason
        reason = reason or f"{sharing} rows change its log-probabilities (by {error:.1g} relative)"
    raise ModelError(
        f"{type(model).__name__} cannot be scored exactly",
        got=reason,
        expected="log-probabilities equal to the model's own logits",
        do="Please report the architecture",
    )


_WIDE_PROBE = Group(  # several blocks of FlexAttention
    prompt=np.arange(120, dtype=np.int32) % 40 + 3,
    completions=(np.arange(70, dtype=np.int32) % 31 + 3, np.arange(50, dtype=np.int32) % 23 + 3),
)


@torch.no_grad()
def _plain_logp(model: PreTrainedModel, group: Group) -> Float[Tensor, " N"]:
    """The definition: each sequence alone through the whole model, log-softmax, gather."""
    parts = []
    for completion in group.completions:
        ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long().to(model.device)
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        targets = ids[len(group.prompt) :]
        parts.append(
            logits[len(group.prompt) - 1 : -1].log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        )
    return torch.cat(parts)


@torch.no_grad()
def _probe_error(model: PreTrainedModel, sharing: Sharing, truth: Float[Tensor, " N"]) -> float:
    batch = to_device(collate([PROBE, PROBE], LayoutOptions(), sharing), model.device)
    hidden = hidden_states(model, batch, sharing)[batch.predict_at]
    logp = score_tokens(hidden, model_head(model), batch.targets).logp.float()
    expected = truth.repeat(2)
    return float((logp - expected).abs().max() / expected.abs().max().clamp(min=1.0))
