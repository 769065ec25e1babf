"""A model that can be scored: its body, its head, and how sequences may lie in its rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.model.layout import LayoutOptions, Sharing, collate
from preftune.errors import ConfigError, ModelError
from preftune.model.attention_masks import FLEX, attention_inputs, expressible, set_attention
from preftune.model.kernels.recompute import recomputing
from preftune.model.scoring import Head, HeadScores, score_tokens
from preftune.model.attention_segments import SEGMENTS, plain_attention, segment_lengths, window_inputs
from preftune.model.shard import ShardOptions, Shards, cut_up, full_tensors
from preftune.model.kernels.widen import in_fp32
from preftune.types import Batch, Group, TokenScores

T = TypeVar("T")

# Relative to the largest |logp|: far above rounding, far below what a leak or another head makes.
_PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A causal language model, ready to be scored.

    `model` is the Hugging Face model itself; adapters, if any, are injected in its layers. `sharing` is the densest layout
    of rows that was proven exact for it, `sharing_reason` says why it is not denser.
    """

    model: PreTrainedModel
    precision: str  # "fp32" or "bf16" (autocast; weights stay as they are)
    sharing: Sharing
    sharing_reason: str
    peft_model: Any = None  # the peft.PeftModel around `model`, when adapters train
    value_head: nn.Linear | None = None  # one number per position, for objectives that need `value` or `value_after`
    shards: Shards | None = None  # when several processes hold a part of it each
    kept_positions: int | None = None  # whose activations a backward finds kept, the rest computed again; all if None

    @property
    def device(self) -> torch.device:
        return self.model.device if self.shards is None else self.shards.device

    def run(self, work: Callable[[], T]) -> T:
        """Work that makes passes of the model; of one in shards a pass is one of all processes."""
        return work() if self.shards is None else self.shards.run(work)

    def whole(self) -> AbstractContextManager[None]:
        """Within, this process can make as many passes as it likes, without gradients."""
        return nullcontext() if self.shards is None else self.shards.whole()

    def behind(self, passes: int) -> int:
        """How many idle passes this process owes the others, besides so many of its own; asked by all, before any of them."""
        return 0 if self.shards is None else self.shards.behind(passes)

    def trainable(self) -> dict[str, nn.Parameter]:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return trained if self.value_head is None else trained | dict(self.value_head.named_parameters(prefix="value_head"))


def in_shards(policy: Policy, options: ShardOptions, device: torch.device) -> Policy:
    """The policy with a part of its weights in each process, which computes on this device; in place, by all processes."""
    shards = cut_up(policy.model, policy.value_head, options, device, low=policy.precision == "bf16")
    cut = replace(policy, shards=shards)
    score_groups(cut, [PROBE], LayoutOptions())  # the first pass settles which unit is the outermost, and which weights train
    return cut


def adapter_weights(policy: Policy, keep: bool) -> dict[str, Tensor] | None:
    """The adapter of a policy in shards, put together under peft's names, by all processes for those with `keep`; None of a
    policy that is whole."""
    if policy.shards is None or policy.peft_model is None:
        return None
    named = dict(policy.peft_model.named_parameters(remove_duplicate=False))
    return full_tensors({name: parameter for name, parameter in named.items() if parameter.requires_grad}, keep)


def make_value_head(model: PreTrainedModel) -> nn.Linear:
    """A scalar head in fp32 that starts at 0 everywhere, so that a run does not depend on a draw."""
    width = model.config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False, dtype=torch.float32, device=model.device)
    nn.init.zeros_(head.weight)
    return head


def model_head(model: PreTrainedModel) -> Head:
    """The head of a Hugging Face causal model with what its configuration does to the logits."""
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        raise ModelError(
            f"The output head of {type(model).__name__} cannot be scored", got=type(linear).__name__,
            expected="a plain linear layer", do="Leave the head (lm_head) out of the adapter's target modules",
        )
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(weight=linear.weight, bias=linear.bias, scale=scale, softcap=softcap)


def hidden_states(model: PreTrainedModel, batch: Batch, sharing: Sharing) -> Float[Tensor, "RS H"]:
    """Last hidden states of all positions, rows flattened."""
    config = model.config.get_text_config()
    more: dict[str, Any] = {}
    if sharing == "flat":
        mask, more = window_inputs(config), {"preftune_segments": segment_lengths(batch)}
    elif sharing == "single":
        mask = (batch.group_ids >= 0).long()
    else:
        mask = attention_inputs(batch, config, model.dtype)
    output = model.get_decoder()(
        input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False, **more
    )
    return output.last_hidden_state.flatten(0, 1)


@contextmanager
def sparse_embedding(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Within, the embedding of a model on a CPU gets its gradient at the rows that a pass reads alone, added to its `.grad`."""
    embedding = model.get_input_embeddings()
    if not (wanted and model.device.type == "cpu" and isinstance(embedding, nn.Embedding) and embedding.weight.requires_grad):
        yield
        return
    if embedding.weight.grad is None:  # a sparse one would take its place
        embedding.weight.grad = torch.zeros_like(embedding.weight, dtype=embedding.weight.grad_dtype)
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes through page-locked memory, for which the processor does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    tensors = {name: tensor for name in Batch.__dataclass_fields__ if (tensor := getattr(batch, name)) is not None}
    return Batch(**{name: sent(tensor, device) for name, tensor in tensors.items()})


def score(
    policy: Policy, batch: Batch, wanted: frozenset[str] = frozenset(), reference: tuple[Tensor, Head] | None = None,
    *, temperature: float = 1.0, into_grad: bool = False,
) -> TokenScores:  # fmt: skip
    """Scores of a batch's completion tokens under the policy, completions in the batch's order.

    `wanted` names the fields of TokenScores beside logp that are to be computed, of those that come from the policy;
    `reference` is for those that compare whole distributions: the reference's hidden states at the same places, and its
    head. With `into_grad`, for a loss whose `.backward()` adds to the `.grad` of all weights, the gradients of head and embedding,
    which are as large as the vocabulary, are added there and then, and no second one is ever held.
    """
    positions, batch = batch.num_real_positions, to_device(batch, policy.device)
    kept = policy.kept_positions if torch.is_grad_enabled() else None
    into_grad = into_grad and policy.shards is None and torch.is_grad_enabled()

    def work() -> tuple[HeadScores, Tensor | None, Tensor | None]:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"):
            with recomputing(policy.model, positions, kept), sparse_embedding(policy.model, into_grad):
                states = hidden_states(policy.model, batch, policy.sharing)
            hidden = states[batch.predict_at]
            found = score_tokens(
                hidden, model_head(policy.model), batch.targets, reference=reference, temperature=temperature,
                into_grad=into_grad, wanted=wanted & (set(HeadScores._fields) - {"ref_logp"}),
            )  # fmt: skip
        value = _head_value(policy, hidden) if "value" in wanted else None
        if "value_after" not in wanted:
            return found, value, None
        assert batch.read_at is not None, "the batch was laid out without its last tokens"
        return found, value, _head_value(policy, states[batch.read_at])

    found, *values = policy.run(work)
    value, value_after = (None if one is None else one.squeeze(1) for one in values)
    return TokenScores(lengths=batch.lengths, value=value, value_after=value_after, **found._asdict())


def _head_value(policy: Policy, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N 1"]:
    assert policy.value_head is not None, "the policy has no value head"
    return policy.value_head(hidden.to(policy.value_head.weight.dtype))


@torch.no_grad()
def score_groups(policy: Policy, groups: Sequence[Group], options: LayoutOptions) -> list[list[np.ndarray]]:
    """logp of every completion token of the groups (already one micro-batch), as float32 arrays [group][completion]."""
    batch = collate(groups, options, policy.sharing)
    parts = iter(score(policy, batch).logp.float().cpu().split(batch.lengths.tolist()))
    return [[next(parts).numpy() for _ in group.completions] for group in groups]


def check_attention(options: LayoutOptions, device: torch.device) -> None:
    """An error if the attention that was asked for is not to be had on this device, before anything is loaded for it."""
    if options.attention == "flex" and device.type != "cuda":
        raise ConfigError("layout.attention flex needs a CUDA device", got=str(device), do="Leave it out, or set it to sdpa")


def choose_layout(model: PreTrainedModel, options: LayoutOptions, precision: str) -> tuple[Sharing, str]:
    """The layout and the attention function of a model's rows: (sharing, what is to be said of the two).

    The attention function is set in the model. FlexAttention is taken only where hidden states and a gradient are those of
    plain attention; that it is chosen, or why it is not where it could be, is said.
    """
    config, wanted, on_cuda = model.config.get_text_config(), options.attention, model.device.type == "cuda"
    check_attention(options, model.device)
    if wanted in ("sdpa", "segments") and plain_attention(config) == "eager":
        raise ConfigError(f"layout.attention {wanted} cannot express this model's soft-capped attention scores",
                          got=type(model).__name__, expected="auto, flex or eager")  # fmt: skip
    if wanted in ("sdpa", "eager"):
        set_attention(model, wanted)
    sharing, reason = choose_sharing(model, options.share_prompts)
    if wanted in ("sdpa", "eager", "segments") or not on_cuda:
        return sharing, reason
    rows: Sharing = "shared" if sharing == "flat" else sharing  # FlexAttention has kernels for rows of like length
    told = "it has no packed rows" if sharing == "single" else prove_flex(model, rows, precision)
    if told and wanted == "flex":
        raise ModelError("layout.attention flex cannot be had for this model", got=told, do="Leave it out, or set it to sdpa")
    if not told:
        return rows, f"{reason}; flex attention" if reason else "flex attention"
    return sharing, f"{reason + '; ' if reason else ''}plain attention instead of flex: {told}"


def prove_flex(model: PreTrainedModel, sharing: Sharing, precision: str) -> str:
    """Give the model FlexAttention if it changes nothing, and "" back; else leave it as it is and say why not.

    Hidden states and the gradient of one parameter are compared with those of the attention that the model has. Kernels are
    compiled for one row, for rows of a fixed number and width, and for any, each with and without gradients: what a run
    will meet is compiled here already.
    """
    plain, tolerance = str(model.config.get_text_config()._attn_implementation), _PROBE_TOLERANCE[model.dtype]
    if precision == "bf16":
        tolerance = _PROBE_TOLERANCE[torch.bfloat16]
    try:
        for groups, tokens in (([PROBE], 4), ([_WIDE_PROBE] * 2, 4), ([_WIDE_PROBE] * 6, 1920)):
            batch = to_device(collate(groups, LayoutOptions(micro_batch_tokens=tokens), sharing), model.device)
            expected = _states_and_gradient(model, batch, sharing, precision)
            set_attention(model, FLEX)
            found = _states_and_gradient(model, batch, sharing, precision)
            set_attention(model, plain)
            error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))
            if not error < tolerance:
                return f"it changes hidden states or gradients (by {error:.1g} relative)"
    except Exception as failure:  # a compiler for kernels runs here, which can fail in any way
        set_attention(model, plain)
        told = " ".join(str(failure).split())[:160]
        return f"it does not run ({type(failure).__name__}: {told})"
    set_attention(model, FLEX)
    return ""


def _states_and_gradient(model: PreTrainedModel, batch: Batch, sharing: Sharing, precision: str) -> list[Tensor]:
    """Hidden states of the real positions; if the model trains, with a graph too, and the gradient of a small parameter."""
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
    """The densest layout that is exact for this model, proven on a small probe, and the reason if it is not the densest.

    The probe scores two completions of one prompt in every layout and compares with the model's own logits, one sequence
    at a time; so it also proves that the head is read as the model means it. It computes in fp32: rounding in 16 bits can be
    as large as what another layout would do wrong.
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
        order, reason = order[-1:], "its layers mix the positions of a row in ways that a mask cannot keep apart"
    for sharing in order:
        try:
            error = _probe_error(model, sharing, truth)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as failure:
            reason = f"its attention refuses an explicit mask ({type(failure).__name__})"
            continue
        if error < _PROBE_TOLERANCE[model.dtype]:
            return sharing, reason
        reason = reason or f"{sharing} rows change its log-probabilities (by {error:.1g} relative)"
    raise ModelError(
        f"{type(model).__name__} cannot be scored exactly", got=reason,
        expected="log-probabilities equal to the model's own logits", do="Please report the architecture",
    )


PROBE = Group(
    prompt=np.arange(1, 8, dtype=np.int32),
    completions=(np.arange(3, 12, dtype=np.int32), np.arange(9, 4, -1, dtype=np.int32)),
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
        parts.append(logits[len(group.prompt) - 1 : -1].log_softmax(-1).gather(1, targets[:, None]).squeeze(1))
    return torch.cat(parts)


@torch.no_grad()
def _probe_error(model: PreTrainedModel, sharing: Sharing, truth: Float[Tensor, " N"]) -> float:
    batch = to_device(collate([PROBE, PROBE], LayoutOptions(), sharing), model.device)
    hidden = hidden_states(model, batch, sharing)[batch.predict_at]
    logp = score_tokens(hidden, model_head(model), batch.targets).logp.float()
    expected = truth.repeat(2)
    return float((logp - expected).abs().max() / expected.abs().max().clamp(min=1.0))
