"""Hidden states of the next token, for rows of completions that grow by a token at a time.

Three ways, from the fastest to the most general. "shared": keys and values of a prompt are computed once and
read by all of its completions. "repeated": they are computed once and copied for every completion.
"recomputed": nothing is kept, and every step reads the sequences from the start. `choose_engine` proves which
one a model can have.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from preftune.errors import ModelError
from preftune.model.attention_masks import expressible, layer_types
from preftune.model.kernels.widen import in_fp32
from preftune.model.policy import model_head, text_body
from preftune.model.scoring import head_logits

Engine = Literal["shared", "repeated", "recomputed"]

_ATTENTION = "preftune_shared_prompts"
_ROOM = 64  # positions by which the room for keys and values grows
_TOLERANCE = {
    torch.float64: 1e-3,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}  # of the largest logit


@runtime_checkable
class Rows(Protocol):
    """Completions that are being drawn, as rows; a prompt's are together, in the prompts' order."""

    hidden: Float[Tensor, "R H"]  # the states that predict the rows' next tokens

    def step(self, tokens: Int[Tensor, " R"]) -> None:
        """Append a token to each row."""
        ...

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Continue with these rows only, in ascending order."""
        ...


def start_rows(
    engine: Engine, model: PreTrainedModel, prompts: Sequence[np.ndarray], completions: int
) -> Rows:
    """Compute the prompts and open `completions` rows for each; all but "shared" want prompts of one length."""
    width = max(map(len, prompts))
    assert engine == "shared" or width == min(map(len, prompts)), "prompts of one length"
    ids = np.zeros(
        (len(prompts), width), dtype=np.int64
    )  # padded on the right, which no token before it sees
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    inputs = torch.from_numpy(ids).to(model.device)
    if engine == "shared":
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        return _SharedRows(model, inputs, lengths, completions)
    return (_RepeatedRows if engine == "repeated" else _RecomputedRows)(model, inputs, completions)


# --- shared: two blocks of keys, the prompt's and the row's own ---


@dataclass(kw_only=True)
class _Prompts:
    """Keys and values of the prompts, a tensor for each layer, and where each row belongs."""

    keys: list[Tensor]  # [G, heads, P, D]
    values: list[Tensor]
    lengths: Int[Tensor, " G"]
    group: Int[Tensor, " R"]  # the prompt of each row
    slot: Int[Tensor, " R"]  # which row of its prompt it is
    width: int  # most rows of a prompt


class _OwnLayer(DynamicLayer):
    """Keys and values of the rows' own tokens, with room to grow: a step writes one position and copies
    nothing.
    """

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.filled, self.keys, self.values = 0, key_states[:, :, :0], value_states[:, :, :0]
        if self.filled == self.keys.shape[2]:
            self.keys, self.values = _with_room(self.keys), _with_room(self.values)
        self.keys[:, :, self.filled], self.values[:, :, self.filled] = (
            key_states[:, :, 0],
            value_states[:, :, 0],
        )
        self.filled += 1
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        return self.filled if self.is_initialized else 0


def _with_room(old: Tensor) -> Tensor:
    return torch.cat([old, old.new_empty(*old.shape[:2], _ROOM, old.shape[3])], dim=2)


def attend_shared(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    preftune_prompts: _Prompts,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one query a row, [R, heads, 1, D], to its prompt's keys and then its own: softmax(q k^T
    scaling) v.

    Query heads that share a key head, and rows that share a prompt, are rows of one matrix product. The mask,
    True where a query may look, is [R, 1, 1, P + own]. `softcap` is c * tanh(score / c); `s_aux` are the
    scores of attention sinks, one a head, which take part in the softmax and have no value.
    """
    at, layer = preftune_prompts, int(module.layer_idx)  # type: ignore[arg-type]
    past_key, past_value = at.keys[layer], at.values[layer]
    (rows, heads, _one, size), key_heads = query.shape, key.shape[1]
    groups, _heads, past, _size = past_key.shape
    q = query.reshape(rows, key_heads, heads // key_heads, size) * (
        size**-0.5 if scaling is None else scaling
    )
    grid = q.new_zeros(groups, at.width, *q.shape[1:])
    grid[at.group, at.slot] = q
    to_past = _by_prompt(grid) @ past_key.transpose(2, 3)
    scores = torch.cat([_by_row(to_past, at, heads // key_heads), q @ key.transpose(2, 3)], dim=3).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~attention_mask, float("-inf"))
    if s_aux is not None:
        sinks = s_aux.float().view(1, key_heads, -1, 1).expand(rows, -1, -1, -1)
        weights = torch.cat([scores, sinks], dim=3).softmax(3)[..., :-1].to(value.dtype)
    else:
        weights = scores.softmax(3).to(value.dtype)
    grid = weights.new_zeros(groups, at.width, *weights.shape[1:3], past)
    grid[at.group, at.slot] = weights[..., :past]
    out = _by_row(_by_prompt(grid) @ past_value, at, heads // key_heads) + weights[..., past:] @ value
    return out.reshape(rows, 1, heads, -1), None


def _by_prompt(grid: Tensor) -> Tensor:
    """[G, W, heads, q, X] to [G, heads, W * q, X]."""
    return grid.transpose(1, 2).flatten(2, 3)


def _by_row(found: Tensor, at: _Prompts, queries: int) -> Tensor:
    """[G, heads, W * q, X] to [R, heads, q, X]."""
    return found.unflatten(2, (at.width, queries)).transpose(1, 2)[at.group, at.slot]


AttentionInterface.register(_ATTENTION, attend_shared)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Use the named attention function in the model's layers within the context."""
    kept = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = kept


class _SharedRows:
    def __init__(
        self, model: PreTrainedModel, inputs: Int[Tensor, "G P"], lengths: Int[Tensor, " G"], completions: int
    ):
        self._model, self._own = model, Cache(layer_class_to_replicate=_OwnLayer)
        past = (
            DynamicCache()
        )  # without the configuration: it holds all positions of layers with a sliding window
        states = text_body(model)(input_ids=inputs, past_key_values=past, use_cache=True).last_hidden_state
        group = torch.arange(len(inputs), device=inputs.device).repeat_interleave(completions)
        self.hidden = states[group, lengths[group] - 1]
        self._at = _Prompts(
            keys=[keys for keys, _, _ in past],  # type: ignore[misc]
            values=[values for _, values, _ in past],  # type: ignore[misc]
            lengths=lengths,
            group=group,
            slot=torch.arange(completions, device=inputs.device).repeat(len(inputs)),
            width=completions,
        )
        self._steps = 0

    def step(self, tokens: Int[Tensor, " R"]) -> None:
        self._steps += 1
        position = self._at.lengths[self._at.group] + self._steps - 1
        with _attention(self._model, _ATTENTION):
            output = text_body(self._model)(
                input_ids=tokens[:, None],
                position_ids=position[:, None],
                attention_mask=self._masks(position),
                past_key_values=self._own,
                use_cache=True,
                preftune_prompts=self._at,
            )
        self.hidden = output.last_hidden_state[:, 0]

    def _masks(self, position: Int[Tensor, " R"]) -> Tensor | dict[str, Tensor]:
        """For each kind of layer, [R, 1, 1, P + own]: the prompt's tokens, the row's own, none behind a
        sliding window.
        """
        config = self._model.config.get_text_config()
        lengths = self._at.lengths[self._at.group][:, None]
        column = torch.arange(self._at.keys[0].shape[2], device=position.device).expand(len(position), -1)
        own = lengths + torch.arange(self._steps, device=position.device)
        key_position = torch.cat([column, own], dim=1)
        seen = torch.cat([column < lengths, torch.ones_like(own, dtype=torch.bool)], dim=1)
        kinds = layer_types(config)
        masks = {
            kind: _within(
                seen, key_position, position, config.sliding_window if kind == "sliding_attention" else None
            )
            for kind in kinds
        }
        return (
            masks if getattr(config, "layer_types", None) and len(kinds) > 1 else next(iter(masks.values()))
        )

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        rows = rows.to(self.hidden.device)
        self.hidden = self.hidden[rows]
        if self._steps:
            self._own.reorder_cache(rows)  # type: ignore[arg-type]
        left, group = torch.unique(self._at.group[rows], return_inverse=True)
        if len(left) < len(self._at.lengths):
            self._at.keys[:] = [keys[left] for keys in self._at.keys]
            self._at.values[:] = [values[left] for values in self._at.values]
            self._at.lengths = self._at.lengths[left]
        counts = torch.bincount(group)
        first = counts.cumsum(0) - counts
        self._at.group, self._at.slot = group, torch.arange(len(rows), device=rows.device) - first[group]
        self._at.width = int(counts.max())


def _within(
    seen: Bool[Tensor, "R K"], key: Int[Tensor, "R K"], query: Int[Tensor, " R"], window: int | None
) -> Tensor:
    if window is not None:
        seen = seen & (query[:, None] - key < window)
    return seen[:, None, None, :]


# --- repeated and recomputed ---


class _RepeatedRows:
    def __init__(self, model: PreTrainedModel, inputs: Int[Tensor, "G P"], completions: int):
        self._decoder = text_body(model)
        output = self._decoder(input_ids=inputs, use_cache=True)
        self._cache, self.hidden = output.past_key_values, output.last_hidden_state[:, -1]
        self.keep(torch.arange(len(inputs)).repeat_interleave(completions))

    def step(self, tokens: Int[Tensor, " R"]) -> None:
        output = self._decoder(input_ids=tokens[:, None], past_key_values=self._cache, use_cache=True)
        self.hidden = output.last_hidden_state[:, -1]

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        rows = rows.to(self.hidden.device)
        self._cache.reorder_cache(
            rows
        )  # every kind of layer has it, and it may repeat rows as well as drop them
        self.hidden = self.hidden[rows]


class _RecomputedRows:
    def __init__(self, model: PreTrainedModel, inputs: Int[Tensor, "G P"], completions: int):
        self._decoder, self._inputs = text_body(model), inputs
        self.hidden = self._compute()
        self.keep(torch.arange(len(inputs)).repeat_interleave(completions))

    def _compute(self) -> Float[Tensor, "R H"]:
        return self._decoder(input_ids=self._inputs, use_cache=False).last_hidden_state[:, -1]

    def step(self, tokens: Int[Tensor, " R"]) -> None:
        self._inputs = torch.cat([self._inputs, tokens[:, None]], dim=1)
        self.hidden = self._compute()

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        rows = rows.to(self.hidden.device)
        self._inputs, self.hidden = self._inputs[rows], self.hidden[rows]


# --- which one ---

_PROBE = (np.array([1, 2, 3, 4, 5, 3]), np.array([5, 4, 2]))  # prompts
_PROBE_TOKENS = np.array([[3, 5, 2], [4, 1, 5], [2, 4, 3], [1, 3, 4]])  # two completions each
_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)


@torch.no_grad()
def choose_engine(model: PreTrainedModel) -> tuple[Engine, str]:
    """The fastest engine that is exact for this model (in evaluation mode), and the reason if it is not
    "shared".

    Two completions of two prompts are fed through each engine, and one of them is dropped on the way. What
    the head makes of the hidden states must be the model's own logits. Costs about four passes over a few
    tokens.
    """
    reason = ""
    if not expressible(model.config.get_text_config()):
        reason = "its layers mix positions in ways that a mask cannot keep apart"
    engines: tuple[Engine, ...] = ("shared", "repeated", "recomputed")
    # Rounding in 16 bits is larger than what a leak makes.
    with in_fp32(model), torch.autocast(model.device.type, enabled=False):
        return _first_exact(model, engines[1 if reason else 0 :], reason)


def _first_exact(model: PreTrainedModel, engines: tuple[Engine, ...], reason: str) -> tuple[Engine, str]:
    truth = _plain_logits(model)
    for engine in engines:
        try:
            error = _probe_error(engine, model, truth)
        except _FAILURES as failure:
            reason = reason or f"its layers do not take shared prompts ({type(failure).__name__})"
            continue
        if error < _TOLERANCE[model.dtype]:
            return engine, reason
        reason = reason or f"{engine} prompts change its logits (by {error:.1g} relative)"
    if not truth.isfinite().all():
        raise ModelError(
            f"The model {model.name_or_path} computes logits that are not finite",
            got="nan or inf for a prompt",
            expected="numbers",
            do="Its weights, its adapter or config.json are damaged: fetch or save them again",
        )
    raise ModelError(
        f"Nothing exact can be drawn from {type(model).__name__}",
        got=reason,
        expected="hidden states from which the head makes the model's logits",
        do="Please report the architecture",
    )


def _plain_logits(model: PreTrainedModel) -> Float[Tensor, "R T V"]:
    """The model's own logits for the tokens of the probe: whole sequences, no cache, no mask; padding comes
    last.
    """
    rows = [np.concatenate([_PROBE[k // 2], tokens[:-1]]) for k, tokens in enumerate(_PROBE_TOKENS)]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    logits = model(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False).logits.float()
    count = _PROBE_TOKENS.shape[1]
    return torch.stack([logits[k, len(row) - count : len(row)] for k, row in enumerate(rows)])


def _probe_error(engine: Engine, model: PreTrainedModel, truth: Float[Tensor, "R T V"]) -> float:
    """Largest deviation of a logit, of the largest logit."""
    head, wrong = model_head(model), 0.0
    for chosen in [(0, 1)] if engine == "shared" else [(0,), (1,)]:
        rows = start_rows(engine, model, [_PROBE[index] for index in chosen], 2)
        live = np.concatenate([[2 * index, 2 * index + 1] for index in chosen])
        for step in range(truth.shape[1]):
            if step == 1:
                rows.keep(torch.arange(1, len(live)))
                live = live[1:]
            if step:
                rows.step(torch.from_numpy(_PROBE_TOKENS[live, step - 1]).to(model.device))
            wrong = max(wrong, float((head_logits(rows.hidden, head) - truth[live, step]).abs().max()))
    return wrong / float(truth.abs().max())
