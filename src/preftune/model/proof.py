"""Proofs at start-up: which layout and which attention score this model exactly."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from preftune.errors import ConfigError, ModelError
from preftune.model.attention_choice import ON_GPU, choose_attention
from preftune.model.attention_masks import expressible, set_attention
from preftune.model.attention_segments import SEGMENTS, plain_attention
from preftune.model.kernels.widen import in_fp32
from preftune.model.layout import LayoutOptions, Sharing, collate
from preftune.model.limits import positions_of
from preftune.model.policy import PROBE, forget_lengths, hidden_states, model_head, text_body, to_device
from preftune.model.scoring import score_tokens
from preftune.types import Group

# Relative to the largest |logp|: far above rounding, far below what a leak or another head makes.
_PROBE_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_attention(options: LayoutOptions, device: torch.device) -> None:
    """An error if the attention that was requested is not available on this device, before anything is loaded
    for it.
    """
    if options.attention in ON_GPU and device.type != "cuda":
        raise ConfigError(
            f"layout.attention {options.attention} needs a CUDA device",
            got=str(device),
            do="Leave it out, or set it to sdpa",
        )


def choose_layout(
    model: PreTrainedModel,
    options: LayoutOptions,
    precision: str,
    longest: int | None = None,
    device: torch.device | None = None,
) -> tuple[Sharing, str]:
    """The layout and the attention function of a model's rows: (sharing, what the log states of the two).
    No row is longer than `longest` tokens, if that is known. `device` is where the model will compute, if it
    is moved later.

    The attention function is set in the model. On a GPU it is one of `attention_choice`, taken only where
    hidden states and a gradient are those of plain attention.
    """
    device = device or model.device
    config, wanted, on_cuda = model.config.get_text_config(), options.attention, device.type == "cuda"
    check_attention(options, device)
    if wanted in ("sdpa", "segments", "varlen") and plain_attention(config) == "eager":
        raise ConfigError(
            f"layout.attention {wanted} cannot express this model's soft-capped attention scores",
            got=type(model).__name__,
            expected="auto, flex or eager",
        )
    if wanted in ("sdpa", "eager"):
        try:
            set_attention(model, wanted)
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"layout.attention {wanted} is not for this model",
                got=" ".join(str(error).split())[:160],
                do="Leave layout.attention out",
            ) from error
    sharing, reason = choose_sharing(model, options.share_prompts, longest)
    if precision == "bf16":
        _check_low(model, sharing)
    if wanted in ("sdpa", "eager", "segments") or not on_cuda:
        return sharing, reason
    rows, told = choose_attention(model, options, precision, sharing, device)
    return rows, "; ".join(filter(None, (reason, told)))


def choose_sharing(model: PreTrainedModel, wanted: bool, longest: int | None = None) -> tuple[Sharing, str]:
    """The densest layout that is exact for this model, proven on a small probe, and the reason if it is not
    the densest. No row is longer than `longest` tokens, if that is known.

    The probe scores short rows next to longer rows in every layout and compares with the model's own logits,
    one sequence at a time; so it also proves that the head is read as the model means it. It computes in
    fp32: rounding in 16 bits can be as large as what another layout would do wrong.
    """
    with in_fp32(model):
        return _choose_sharing(model, wanted, longest)


def _choose_sharing(model: PreTrainedModel, wanted: bool, longest: int | None) -> tuple[Sharing, str]:
    limit = context_limit(model)
    bounded = limit is not None and longest is not None and longest <= limit
    groups = layout_probe(model, limit if bounded else None)
    try:
        truth = torch.cat([_plain_logp(model, group) for group in groups])
    except Exception as failure:  # the code of a model may fail in any way
        raise _not_exact(model, f"its own forward fails on plain tokens: {_in_short(failure)}") from failure
    if torch.isnan(truth).any():
        raise _not_exact(model, "its log-probabilities are NaN", "Fetch or save the model again")
    if not _is_causal(model, groups[0]):
        told = "its logits depend on later tokens: it is no causal language model"
        raise _not_exact(model, told, "Name a decoder-only language model")
    order: tuple[Sharing, ...] = ("flat", "shared", "packed", "single", "alone")
    reason, wrong = "", ""
    if not wanted:
        order, reason = order[2:], "share_prompts is off"
    config = model.config.get_text_config()
    if config._attn_implementation != SEGMENTS and order[0] == "flat":
        order, reason = order[1:], f"its attention is {config._attn_implementation}"
    if not expressible(config):
        order, reason = (  # type: ignore
            ("single", "alone"),
            "its layers mix the positions of a row in ways that a mask cannot keep apart",
        )
    if limit is not None and not bounded:
        order, reason = (  # type: ignore
            ("alone",),
            f"its positions depend on the longest row where one has more than {limit} tokens",
        )
    for sharing in order:
        try:
            error = _probe_error(model, sharing, groups, truth)
        except Exception as failure:  # the code of a model may fail in any way
            wrong = f"{sharing} rows fail: {_in_short(failure)}"
        else:
            if error < _PROBE_TOLERANCE[model.dtype]:
                return sharing, reason
            wrong = f"{sharing} rows change its log-probabilities (by {error:.1g} relative)"
        reason = reason or wrong
    if wrong.startswith("alone rows change"):
        wrong = (
            "its head does more with hidden states than a linear layer and the scales of its configuration"
        )
    raise _not_exact(model, wrong)


@torch.no_grad()
def _check_low(model: PreTrainedModel, sharing: Sharing) -> None:
    """An error if the model does not compute with products in bf16."""
    batch = to_device(collate([PROBE], LayoutOptions(), sharing), model.device)
    try:
        with torch.autocast(model.device.type, torch.bfloat16):
            hidden_states(model, batch, sharing)
    except Exception as failure:  # the code of a model may fail in any way
        raise ModelError(
            f"{type(model).__name__} does not compute in bf16",
            got=_in_short(failure),
            do="Use --precision fp32",
        ) from failure


def check_trains(model: PreTrainedModel, sharing: Sharing, precision: str) -> None:
    """An error if no gradient reaches the model's weights."""
    batch = to_device(collate([PROBE], LayoutOptions(), sharing), model.device)
    small = [p for p in text_body(model).parameters() if p.ndim == 1 and p.requires_grad]
    low = precision == "bf16"
    try:
        with torch.enable_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=low):
            states = hidden_states(model, batch, sharing).float()
            found = torch.autograd.grad(states.square().sum(), small, allow_unused=True) if small else ()
            if 4 * sum(gradient is not None for gradient in found) < len(small):
                raise RuntimeError("the backward does not reach its layers")
    except Exception as failure:  # the code of a model may fail in any way
        raise ModelError(
            f"{type(model).__name__} cannot be trained", got=_in_short(failure), do="Use another model"
        ) from failure


def _in_short(failure: Exception) -> str:
    return f"{type(failure).__name__} ({' '.join(str(failure).split())[:120]})"


def _not_exact(model: PreTrainedModel, reason: str, do: str = "Please report the architecture") -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be scored exactly",
        got=reason,
        expected="log-probabilities equal to the model's own logits",
        do=do,
    )


def layout_probe(model: PreTrainedModel, most: int | None = None) -> list[Group]:
    """Short rows next to longer rows, of tokens that the model has, and of its positions or `most` tokens."""
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 0) or 41)
    size = max(1, min(38, vocabulary - 3))

    def ids(start: int, count: int, stride: int) -> np.ndarray:
        return ((start + stride * np.arange(count)) % size + min(3, vocabulary - 1)).astype(np.int32)

    room = min(40, most or 40, positions_of(model.config.get_text_config()) or 40)
    longer = Group(
        prompt=ids(5, room * 23 // 40, 7),
        completions=(ids(2, room * 17 // 40, 5), ids(11, room * 6 // 40, 3)),
    )
    shorter = Group(prompt=ids(1, 3, 2), completions=(ids(8, 1, 1), ids(20, 4, 11)))
    return [PROBE, longer, shorter] if vocabulary > 16 else [longer, shorter]


@torch.no_grad()
def _is_causal(model: PreTrainedModel, group: Group) -> bool:
    """Whether the logits of a sequence stay as they are when tokens follow."""
    ids = torch.from_numpy(np.concatenate([group.prompt, group.completions[0]])).long().to(model.device)
    size = len(ids) - 2
    whole, part = (
        model(input_ids=some[None], use_cache=False).logits[0, :size].float() for some in (ids, ids[:size])
    )
    return float((whole - part).abs().max()) < _PROBE_TOLERANCE[model.dtype] * 10 * float(whole.abs().max())


@torch.no_grad()
def context_limit(model: PreTrainedModel) -> int | None:
    """The number of tokens above which the positions of one row change the result of another, if there is one.

    Rotary embeddings with dynamic or long-context scaling are of this kind. A short row is computed next to
    another whose few tokens are at high positions, so that the check costs little whatever the limit.
    """
    for limit in sorted(_context_lengths(model.config.get_text_config())):
        try:
            forget_lengths(model)
            alone, beside = (_first_row_beside(model, last) for last in (limit - 1, limit))
        except Exception:  # learned positions end there, or the model takes no positions
            continue
        finally:
            forget_lengths(model)
        if not torch.allclose(alone, beside, rtol=0, atol=1e-4 * float(alone.abs().max())):
            return limit
    return None


def _context_lengths(config: Any) -> set[int]:
    """Every number of positions that a configuration names."""
    found, parts = set[int](), [config.to_dict()]
    while parts:
        for name, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif "max_position" in str(name) and isinstance(value, int) and value > 8:
                found.add(value)
    return found


def _first_row_beside(model: PreTrainedModel, last: int) -> Tensor:
    """Hidden states of a short row, computed together with a row whose last token is at this position."""
    few = 6
    ids = torch.arange(1, few + 1, device=model.device).repeat(2, 1)
    positions = torch.arange(few, device=model.device)
    output = text_body(model)(
        input_ids=ids, position_ids=torch.stack([positions, positions + last - few + 1]), use_cache=False
    )
    return output.last_hidden_state[0].float()


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
def _probe_error(
    model: PreTrainedModel, sharing: Sharing, groups: list[Group], truth: Float[Tensor, " N"]
) -> float:
    batch = to_device(collate(groups, LayoutOptions(micro_batch_tokens=100), sharing), model.device)
    hidden = hidden_states(model, batch, sharing)[batch.predict_at]
    logp = score_tokens(hidden, model_head(model), batch.targets).logp.float()
    error = float((logp - truth).abs().max() / truth.abs().max().clamp(min=1.0))
    return error if error == error else float("inf")
