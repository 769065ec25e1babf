"""A model that can be scored: its body, its head, and how sequences may lie in its rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from preftune.errors import ModelError
from preftune.model.adapters import dropping_out, has_dropout, unwrapped_head
from preftune.model.attention_blocks import padded_inputs
from preftune.model.attention_masks import attention_inputs
from preftune.model.attention_segments import segment_lengths, window_inputs
from preftune.model.kernels.recompute import recomputing
from preftune.model.layout import LayoutOptions, Sharing, collate, split_micro_batches
from preftune.model.router import Router, router_use
from preftune.model.scoring import Head, HeadScores, score_tokens
from preftune.model.shard import ShardOptions, Shards, cut_up, full_tensors
from preftune.types import Batch, Group, RouterUse, TokenScores

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A causal language model, ready to be scored.

    `model` is the Hugging Face model itself; adapters, if any, are injected in its layers. `sharing` is the
    densest layout of rows that was proven exact for it, `sharing_reason` states why it is not denser.
    """

    model: PreTrainedModel
    precision: str  # "fp32" or "bf16" (autocast; weights stay as they are)
    sharing: Sharing
    sharing_reason: str
    peft_model: Any = None  # the peft.PeftModel around `model`, when adapters train
    # one number per position and head, for objectives that need `value` or `value_after`
    value_head: nn.Linear | None = None
    critic: PreTrainedModel | None = None  # whose body `value_head` reads; None: that of `model`
    shards: Shards | None = None  # when several processes hold a part of it each
    # whose activations a backward finds kept, the rest computed again; all if None
    kept_positions: int | None = None
    router: Router | None = None  # of a mixture of experts
    quantization: str = "none"  # of the frozen weights under adapters

    @property
    def device(self) -> torch.device:
        return self.model.device if self.shards is None else self.shards.device

    def run(self, work: Callable[[], T]) -> T:
        """Work that makes passes of the model; of one in shards a pass is one of all processes."""
        return work() if self.shards is None else self.shards.run(work)

    def whole(self) -> AbstractContextManager[None]:
        """Allow this process any number of passes without gradients within the context."""
        return nullcontext() if self.shards is None else self.shards.whole()

    def behind(self, passes: int) -> int:
        """Idle forward passes that this process must add to its own `passes`, so that all processes make
        equally many. All processes call this before their first pass.
        """
        return 0 if self.shards is None else self.shards.behind(passes)

    def trainable(self) -> dict[str, nn.Parameter]:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.critic is not None:
            trained |= dict(text_body(self.critic).named_parameters(prefix="critic"))
        if self.value_head is not None:
            trained |= dict(self.value_head.named_parameters(prefix="value_head"))
        return trained


def in_shards(policy: Policy, options: ShardOptions, device: torch.device) -> Policy:
    """The policy with a part of its weights in each process, which computes on this device; in place, by all
    processes.
    """
    shards = cut_up(policy.model, policy.value_head, options, device, low=policy.precision == "bf16")
    cut = replace(policy, shards=shards)
    score_groups(
        cut, [PROBE], LayoutOptions()
    )  # the first pass determines which unit is the outermost, and which weights train
    return cut


def adapter_weights(policy: Policy, keep: bool) -> dict[str, Tensor] | None:
    """The adapter of a policy in shards, put together under peft's names, by all processes for those with
    `keep`; None of a policy that is whole.
    """
    if policy.shards is None or policy.peft_model is None:
        return None
    named = dict(policy.peft_model.named_parameters(remove_duplicate=False))
    return full_tensors(
        {name: parameter for name, parameter in named.items() if parameter.requires_grad}, keep
    )


def make_value_head(
    model: PreTrainedModel, start: Tensor | None = None, count: int = 1, seed: int = 0
) -> nn.Linear:
    """Scalar heads in fp32 that start as those of a reward model. A new head starts at 0 everywhere, so that a run
    does not depend on a draw; several new heads are drawn, since equal ones would stay equal.
    """
    width = model.config.get_text_config().hidden_size
    head = nn.Linear(width, count, bias=False, dtype=torch.float32, device=model.device)
    if start is None and count > 1:  # outputs of about 1, where a normalized state has entries of about 1
        start = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
    with torch.no_grad():
        head.weight.copy_(torch.zeros(()) if start is None else start)
    return head


def model_head(model: PreTrainedModel) -> Head:
    """The head of a Hugging Face causal model with what its configuration does to the logits."""
    linear = unwrapped_head(model.get_output_embeddings())
    if not isinstance(linear, nn.Linear):
        raise ModelError(
            f"The output head of {type(model).__name__} cannot be scored",
            got=type(linear).__name__,
            expected="a plain linear layer",
            do="Leave the head (lm_head) out of the adapter's target modules",
        )
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= float(getattr(config, name, None) or 1.0)
    for name in ("logits_scaling", "logits_mup_width_multiplier"):
        scale /= float(getattr(config, name, None) or 1.0)
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((cap for name in caps if (cap := getattr(config, name, None))), None)
    return Head(weight=linear.weight, bias=linear.bias, scale=scale, softcap=softcap)


def text_body(model: PreTrainedModel) -> nn.Module:
    """The module from token ids to the last hidden states, which the head reads."""
    body = model.get_decoder()
    if isinstance(body, nn.Linear) or body is model or getattr(body, "lm_head", None) is not None:
        body = model.base_model
    return getattr(model, "model", body) if body is model else body


def hidden_states(model: PreTrainedModel, batch: Batch, sharing: Sharing) -> Float[Tensor, "RS H"]:
    """Last hidden states of all positions, rows flattened."""
    return _body_outputs(model, batch, sharing, routes=False)[0]


def _body_outputs(
    model: PreTrainedModel, batch: Batch, sharing: Sharing, *, routes: bool
) -> tuple[Float[Tensor, "RS H"], tuple[Float[Tensor, "RS E"], ...]]:
    """Last hidden states of all positions, rows flattened; and with `routes` the logits of each layer's
    router.
    """
    config = model.config.get_text_config()
    more: dict[str, Any] = {"output_router_logits": True} if routes else {}
    if sharing == "flat":
        mask, more = window_inputs(config), more | {"preftune_segments": segment_lengths(batch)}
    elif sharing == "single":
        mask = (batch.group_ids >= 0).long()
    else:
        mask = attention_inputs(batch, config, model.dtype)
    if sharing == "alone":
        return _rows_alone(model, batch, more)
    ids, positions = padded_inputs(batch, config._attn_implementation)
    output = text_body(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **more
    )

    def unpadded(states: Tensor) -> Tensor:
        return states.reshape(*ids.shape, -1)[:, : batch.input_ids.shape[1]].flatten(0, 1)

    routed = output.router_logits if routes else ()
    return unpadded(output.last_hidden_state), tuple(map(unpadded, routed))


def _rows_alone(
    model: PreTrainedModel, batch: Batch, more: dict[str, Any]
) -> tuple[Float[Tensor, "RS H"], tuple[Float[Tensor, "RS E"], ...]]:
    """Every row through the model by itself, without padding and as if it were the model's first."""
    rows, routed = [], []
    for ids, owners in zip(batch.input_ids, batch.group_ids, strict=True):
        length = int((owners >= 0).sum())
        forget_lengths(model)
        output = text_body(model)(input_ids=ids[None, :length], use_cache=False, **more)
        rest = (0, 0, 0, len(ids) - length)
        rows.append(pad(output.last_hidden_state[0], rest))
        if more:
            routed.append([pad(layer.flatten(0, -2), rest) for layer in output.router_logits])
    return torch.cat(rows), tuple(torch.cat(layer) for layer in zip(*routed, strict=True))


def forget_lengths(model: nn.Module) -> None:
    """Rotary embeddings that scale with the longest sequence seen so far return to their start."""
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            start = getattr(module, f"{prefix}original_inv_freq", None)
            frequencies = getattr(module, f"{prefix}inv_freq", None)
            if isinstance(start, Tensor) and isinstance(frequencies, Tensor):
                setattr(module, name, module.original_max_seq_len)
                setattr(module, f"{prefix}inv_freq", start.to(frequencies.device, copy=True))


@contextmanager
def sparse_embedding(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Within, the embedding of a model on a CPU gets its gradient at the rows that a pass reads alone, added
    to its `.grad`.
    """
    embedding = model.get_input_embeddings()
    if not (
        wanted
        and model.device.type == "cpu"
        and isinstance(embedding, nn.Embedding)
        and embedding.weight.requires_grad
    ):
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
    """The tensor on the device. To a GPU it goes through page-locked memory, for which the processor does not
    wait.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    tensors = {
        name: sent(tensor, device)
        for name in Batch.__dataclass_fields__
        if isinstance(tensor := getattr(batch, name), Tensor)
    }
    return replace(batch, **tensors)


def score(
    policy: Policy,
    batch: Batch,
    wanted: frozenset[str] = frozenset(),
    reference: tuple[Tensor, Head] | None = None,
    *,
    temperature: float = 1.0,
    into_grad: bool = False,
) -> TokenScores:
    """Scores of a batch's completion tokens under the policy, completions in the batch's order.

    `wanted` names the fields of TokenScores in addition to logp that are to be computed, of those that come from the
    policy; `reference` is for those that compare whole distributions: the reference's hidden states at the
    same places, and its head. With `into_grad`, for a loss whose `.backward()` adds to the `.grad` of all
    weights, the gradients of head and embedding, which are as large as the vocabulary, are added there and
    then, and no second one is ever held.
    """
    positions, batch = batch.num_real_positions, to_device(batch, policy.device)
    routes = policy.router is not None and torch.is_grad_enabled()
    kept = policy.kept_positions if torch.is_grad_enabled() else None
    into_grad = into_grad and policy.shards is None and torch.is_grad_enabled()
    drops = policy.peft_model is not None and torch.is_grad_enabled() and has_dropout(policy.model)

    def work() -> tuple[HeadScores, RouterUse | None, Tensor | None, Tensor | None]:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"):
            with (
                dropping_out(policy.model, drops),
                recomputing(policy.model, positions, None if drops else kept),
                sparse_embedding(policy.model, into_grad),
            ):
                states, logits = _body_outputs(policy.model, batch, policy.sharing, routes=routes)
            hidden = states[batch.predict_at]
            found = score_tokens(
                hidden,
                model_head(policy.model),
                batch.targets,
                reference=reference,
                temperature=temperature,
                into_grad=into_grad,
                wanted=wanted & (set(HeadScores._fields) - {"ref_logp"}),
            )
        use = _use_of(policy, batch, logits) if routes else None
        value, value_after = _values(policy, batch, states, wanted)
        return found, use, value, value_after

    found, use, value, value_after = policy.run(work)
    return TokenScores(
        lengths=batch.lengths, value=value, value_after=value_after, router=use, **found._asdict()
    )


def _use_of(policy: Policy, batch: Batch, logits: Sequence[Tensor]) -> RouterUse:
    assert policy.router is not None and batch.share is not None
    with torch.autocast(policy.device.type, enabled=False):
        return router_use(logits, batch.share.flatten(), policy.router.top_k)


@torch.no_grad()
def route(policy: Policy, batch: Batch) -> RouterUse:
    """What the routers do with a batch: a pass of the model without its head."""
    batch = to_device(batch, policy.device)

    def work() -> RouterUse:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"):
            _, logits = _body_outputs(policy.model, batch, policy.sharing, routes=True)
        return _use_of(policy, batch, logits)

    return policy.run(work)


def _values(
    policy: Policy, batch: Batch, states: Float[Tensor, "RS H"], wanted: frozenset[str]
) -> tuple[Tensor | None, Tensor | None]:
    """`value` and `value_after` of the batch, where wanted; `states` are those of the policy's body."""
    if not wanted & {"value", "value_after"}:
        return None, None
    if policy.critic is not None:
        kept = policy.kept_positions if torch.is_grad_enabled() else None
        with (
            torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"),
            recomputing(policy.critic, batch.num_real_positions, kept),
        ):
            states = hidden_states(policy.critic, batch, policy.sharing)
    value = _head_value(policy, states[batch.predict_at]) if "value" in wanted else None
    if "value_after" not in wanted:
        return value, None
    assert batch.read_at is not None, "the batch was laid out without its last tokens"
    return value, _head_value(policy, states[batch.read_at])


def _head_value(policy: Policy, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N ..."]:
    """[N], or [N, K] of K > 1 heads."""
    assert policy.value_head is not None, "the policy has no value head"
    return policy.value_head(hidden.to(policy.value_head.weight.dtype)).squeeze(1)


def micro_batches(
    policy: Policy,
    groups: Sequence[Group],
    options: LayoutOptions,
    progress: Callable[[int, int], None] = lambda done, of: None,
    read_last: bool = False,
) -> Iterator[tuple[list[int], list[Group]]]:
    """(indices, groups) of one micro-batch after another; `progress` gets (groups done, of all)."""
    progress(0, len(groups))
    done = 0
    for indices in split_micro_batches(groups, options, policy.sharing, read_last):
        yield indices, [groups[i] for i in indices]
        done += len(indices)
        progress(done, len(groups))


def score_all(
    policy: Policy,
    groups: Sequence[Group],
    options: LayoutOptions,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[list[np.ndarray]]:
    """logp of every completion token of any number of groups: float32 arrays by group, then by completion."""
    logps: list[list[np.ndarray]] = [[] for _ in groups]
    for indices, part in micro_batches(policy, groups, options, progress):
        for index, scores in zip(indices, score_groups(policy, part, options), strict=True):
            logps[index] = scores
    return logps


@torch.no_grad()
def score_groups(
    policy: Policy, groups: Sequence[Group], options: LayoutOptions, temperature: float = 1.0
) -> list[list[np.ndarray]]:
    """logp of every completion token of the groups (already one micro-batch) under softmax(logits /
    temperature), as float32 arrays indexed by group, then by completion.
    """
    batch = collate(groups, options, policy.sharing)
    parts = iter(
        score(policy, batch, temperature=temperature).logp.float().cpu().split(batch.lengths.tolist())
    )
    return [[next(parts).numpy() for _ in group.completions] for group in groups]


PROBE = Group(
    prompt=np.arange(1, 8, dtype=np.int32),
    completions=(np.arange(3, 12, dtype=np.int32), np.arange(9, 4, -1, dtype=np.int32)),
)
