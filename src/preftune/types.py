"""The frozen dataclasses that flow through preftune, from a file's row to an objective's losses.

Shape legend: N completion tokens, C completions, G groups (prompts), P pairs, R rows, S packed sequence positions,
U units (what a loss averages over), V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A prompt with K completions as text, and what the data say of them.

    `prompt` is a list of turns that ends with the user's (a system turn may come first) or plain text; a completion is
    the text of the assistant's turn. What is not known is empty: `pairs` holds (chosen, rejected) indices of completions,
    `labels` +1 / -1 / None and `rewards` numbers / None, one each per completion. `ended` is False for a completion that
    was cut off before its end-of-turn token; empty means that all ended.
    """

    prompt: tuple[Message, ...] | str
    completions: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    labels: tuple[int | None, ...] = ()
    rewards: tuple[float | None, ...] = ()
    ended: tuple[bool, ...] = ()
    origin: str = ""  # "file:row", rows count from 1
    columns: Mapping[str, object] = field(default_factory=dict)  # every other column of the row, for reward functions


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A record as token ids: the same knowledge, indices and order. A completion includes its end-of-turn token
    unless it was cut off before it."""

    prompt: np.ndarray  # int32 [tokens], at least one
    completions: tuple[np.ndarray, ...]  # int32 [tokens] each, at least one
    pairs: tuple[tuple[int, int], ...] = ()
    labels: tuple[int | None, ...] = ()
    rewards: tuple[float | None, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows of groups, and where the completion tokens are read.

    A row holds whole groups: prompt, then its completions without their last token (which is only ever a target).
    Token i of the flat completion tokens is predicted from position `predict_at[i]` of the flattened [R * S] rows.
    """

    input_ids: Int[Tensor, "R S"]
    position_ids: Int[Tensor, "R S"]  # position in its own sequence: completions of a prompt all continue the prompt
    group_ids: Int[Tensor, "R S"]  # which group of the row; -1 is row-end padding
    branch_ids: Int[Tensor, "R S"]  # 0 in the prompt, k in the k-th completion of the group
    predict_at: Int[Tensor, " N"]
    targets: Int[Tensor, " N"]
    lengths: Int[Tensor, " C"]  # tokens per completion; they sum to N

    @property
    def num_positions(self) -> int:
        """Positions that the model computes, row-end padding included."""
        return self.input_ids.numel()

    @property
    def num_real_positions(self) -> int:
        return int((self.group_ids >= 0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What objectives see of the models: numbers per completion token, completions one after another.

    All are natural logs; `ref_logp` and `behaviour_logp` never carry a gradient. What an objective did not declare in its
    `needs` is None.
    """

    logp: Float[Tensor, " N"]
    lengths: Int[Tensor, " C"]
    ref_logp: Float[Tensor, " N"] | None = None
    behaviour_logp: Float[Tensor, " N"] | None = None
    entropy: Float[Tensor, " N"] | None = None
    target_logit: Float[Tensor, " N"] | None = None
    log_normaliser: Float[Tensor, " N"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Signal: completion `chosen[p]` is preferred to completion `rejected[p]`; indices into the C completions."""

    chosen: Int[Tensor, " P"]
    rejected: Int[Tensor, " P"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Signal: +1 preferred, -1 dispreferred, per completion."""

    label: Int[Tensor, " C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Signal: a number from outside per completion; completions of one prompt share a group index."""

    reward: Float[Tensor, " C"]
    group: Int[Tensor, " C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Signal: the signed coefficient of each completion after its baseline."""

    advantage: Float[Tensor, " C"]
    group: Int[Tensor, " C"]


Signal = Pairs | Labels | Rewards | Advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What an objective returns: a loss per unit with its weight, and detached numbers to log.

    A metric is one entry per pair or completion it speaks of; the log shows the mean of all entries of a step.
    """

    per_unit: Float[Tensor, " U"]
    weight: Float[Tensor, " U"]
    metrics: Mapping[str, Float[Tensor, " _"]]
