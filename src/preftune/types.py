"""The frozen dataclasses that flow through preftune, from a file's row to an objective's losses.

Shape legend: N scored completion tokens, C completions, G groups (prompts), P pairs, R rows, S packed
sequence positions, U units (what a loss averages over), V vocabulary.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from numpy import ndarray
else:  # objectives work where there is only torch: shapes in annotations are then plain tensors
    try:
        from jaxtyping import Bool, Float, Int
        from numpy import ndarray
    except ImportError:
        ndarray = Any
        Bool = Float = Int = type("Shaped", (), {"__class_getitem__": lambda cls, item: Tensor})

Source = Literal["data", "policy", "reference"]
"""Who wrote a completion."""
SOURCES: tuple[Source, ...] = get_args(Source)
"""In groups and batches, a source is its place here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of one function by the assistant."""

    name: str
    arguments: str  # a JSON object
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnExtras:
    """What a turn holds in addition to its text."""

    reasoning: str = ""  # written before the content: reasoning_content, thinking or reasoning in data files
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""  # of the tool whose result the turn holds, or of the speaker
    tool_call_id: str = ""  # of the call whose result the turn holds
    weight: float | None = None  # 1: the turn is scored, 0: it is not; None: the data do not state it


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `content` is empty where an assistant only calls tools."""

    role: str
    content: str
    extras: TurnExtras | None = None  # None for nearly all turns

    @property
    def reasoning(self) -> str:
        return self.extras.reasoning if self.extras else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.extras.tool_calls if self.extras else ()

    @property
    def weight(self) -> float | None:
        return self.extras.weight if self.extras else None

    def as_dict(self) -> dict[str, object]:
        """The turn as chat APIs write it, without fields that are empty."""
        turn: dict[str, object] = {"role": self.role, "content": self.content}
        if self.extras:
            turn |= {"reasoning_content": self.extras.reasoning} if self.extras.reasoning else {}
            calls = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                | ({"id": call.id} if call.id else {})
                for call in self.extras.tool_calls
            ]
            turn |= {"tool_calls": calls} if calls else {}
            turn |= {"name": self.extras.name} if self.extras.name else {}
            turn |= {"tool_call_id": self.extras.tool_call_id} if self.extras.tool_call_id else {}
            turn |= {} if self.extras.weight is None else {"weight": self.extras.weight}
        return turn


Completion = str | tuple[Message, ...]
"""The text of one answer; or turns: one answer with reasoning or tool calls, or a trajectory, which has answers
of the assistant at the beginning, at the end and in between, with turns of a user or a tool after each but the
last.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A prompt with K completions as text, and what the data state about them.

    `prompt` is a list of turns that ends with the user's (a system turn may come first) or plain text. What
    is not known is empty: `pairs` holds (chosen, rejected) indices of completions, `probabilities` one number
    in [0, 1] per pair, the chance that its chosen completion is the better one, `labels` +1 / -1 / None and
    `rewards` numbers / None, one each per completion. `ended` is False for a completion that was cut off
    before its end-of-turn token; empty means that all ended. `sources` names the writer of each completion.
    `tools` and `chat_template_kwargs` are JSON texts (a list of function descriptions; an object of variables for
    the chat template), empty where there are none.
    """

    prompt: tuple[Message, ...] | str
    completions: tuple[Completion, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    probabilities: tuple[float, ...] = ()
    labels: tuple[int | None, ...] = ()
    rewards: tuple[float | None, ...] = ()
    ended: tuple[bool, ...] = ()
    sources: tuple[Source, ...] = ()
    tools: str = ""
    chat_template_kwargs: str = ""
    origin: str = ""  # "file:row", rows count from 1
    columns: Mapping[str, object] = field(
        default_factory=dict
    )  # every other column of the row, for reward functions

    def template_columns(self) -> dict[str, object]:
        """The columns tools and chat_template_kwargs, where they are filled."""
        texts = {"tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}
        return {name: json.loads(text) for name, text in texts.items() if text}

    @property
    def identity(self) -> object:
        """What determines the prompt's tokens; equal for records of the same prompt."""
        if self.tools or self.chat_template_kwargs:
            return self.prompt, self.tools, self.chat_template_kwargs
        return self.prompt

    def content(self) -> tuple[object, ...]:
        """What makes two records equal: the prompt, the completions and the signal."""
        signal = (self.pairs, self.probabilities, self.labels, self.rewards)
        return (self.identity, self.completions, *signal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A record as token ids: the same knowledge, indices and order.

    A completion includes its end-of-turn token unless it was cut off before it. Of a trajectory only the
    assistant's tokens are scored, and learned from; the others are context.
    """

    prompt: ndarray  # int32 [tokens], at least one
    completions: tuple[ndarray, ...]  # int32 [tokens] each, at least one
    scored: tuple[ndarray, ...] = ()  # bool [tokens] for each completion; empty where all tokens are scored
    pairs: tuple[tuple[int, int], ...] = ()
    probabilities: tuple[float, ...] = ()
    labels: tuple[int | None, ...] = ()
    rewards: tuple[float | None, ...] = ()
    step_rewards: tuple[
        ndarray, ...
    ] = ()  # float32 [scored tokens], at the tokens that end a step; NaN at the others; a part of `rewards`
    sources: tuple[int, ...] = ()
    behaviour_logp: tuple[
        ndarray, ...
    ] = ()  # float32 [scored tokens], of the distribution that was sampled from
    correction: tuple[ndarray, ...] = ()  # float32 [scored tokens], weights of the gradient; empty: all 1
    behaviour_value: tuple[
        ndarray, ...
    ] = ()  # float32 [scored tokens], of the policy's scalar head when it sampled
    origin: str = ""

    @property
    def num_scored(self) -> tuple[int, ...]:
        """Scored tokens of each completion."""
        return (
            tuple(int(one.sum()) for one in self.scored) if self.scored else tuple(map(len, self.completions))
        )


SegmentLengths = tuple[tuple[int, ...], ...]
"""Positions of the prompt and of each of its completions, segment by segment of a row. A completion of one token
may have none: it is only ever a target.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows of groups, and where the completion tokens are read.

    A row holds whole groups: prompt, then its completions without their last token (which is only ever a
    target), or with it where `read_at` is wanted.
    Token i of the flat scored tokens is predicted from position `predict_at[i]` of the flattened [R * S]
    rows, at position `read_at[i]`.
    """

    input_ids: Int[Tensor, "R S"]
    # position in its own sequence: completions of a prompt all continue the prompt
    position_ids: Int[Tensor, "R S"]
    group_ids: Int[Tensor, "R S"]  # which group of the row; -1 is row-end padding
    branch_ids: Int[Tensor, "R S"]  # 0 in the prompt, k in the k-th completion of the group
    predict_at: Int[Tensor, " N"]
    targets: Int[Tensor, " N"]
    lengths: Int[Tensor, " C"]  # scored tokens per completion; they sum to N
    rows: tuple[SegmentLengths, ...]  # what lies in each row
    read_at: Int[Tensor, " N"] | None = None
    # 1 / the copies of a position in the batch; 0 for padding and for last tokens, which predict nothing
    share: Float[Tensor, "R S"] | None = None

    @property
    def num_positions(self) -> int:
        """Positions that the model computes, row-end padding included."""
        return self.input_ids.numel()

    @property
    def num_real_positions(self) -> int:
        return sum(length for row in self.rows for segment in row for length in segment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """What ties units to the rest of their step or to earlier steps, by name; never carries a gradient.

    `whole` holds one number for the step, the others one for each completion or pair of the micro-batch.
    """

    whole: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    completion: Mapping[str, Float[Tensor, " C"]] = field(default_factory=dict)
    pair: Mapping[str, Float[Tensor, " P"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterUse:
    """Sums over the tokens of a micro-batch, or of a step, of what the routers of a mixture of experts do. E
    experts, L layers.
    """

    probability: Float[Tensor, " E"]  # that a router gives each expert, over all layers
    count: Float[Tensor, "L E"]  # tokens that each expert gets; never carries a gradient
    entropy: Float[Tensor, ""]  # of the routers' probabilities, in nats; never carries a gradient
    rows: Float[Tensor, ""]  # tokens, once for each layer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What objectives see of the models: numbers per completion token, completions one after another.

    Logs are natural, entropies and divergences in nats. What is said of frozen models alone (`ref_*`,
    `behaviour_*`, `contrast`) never carries a gradient. What an objective did not declare in its `needs` is
    None.
    """

    logp: Float[Tensor, " N"]
    lengths: Int[Tensor, " C"]
    ref_logp: Float[Tensor, " N"] | None = None
    behaviour_logp: Float[Tensor, " N"] | None = None
    entropy: Float[Tensor, " N"] | None = None
    target_logit: Float[Tensor, " N"] | None = None
    log_normalizer: Float[Tensor, " N"] | None = None
    log_collision: Float[Tensor, " N"] | None = None  # log sum_v pi(v)^2; never carries a gradient
    # entropy of the reference, of the largest possible: H / log V
    ref_entropy_share: Float[Tensor, " N"] | None = None
    kl_from_ref: Float[Tensor, " N"] | None = None  # KL(ref || pi) over the vocabulary
    kl_to_ref: Float[Tensor, " N"] | None = None  # KL(pi || ref) over the vocabulary
    # log pi_plus(y_t) - log pi_minus(y_t), of two frozen models for token weights
    contrast: Float[Tensor, " N"] | None = None
    # of a scalar head: at each position that predicts a completion token
    value: Float[Tensor, " N"] | None = None
    # of that head at each completion token itself, once it has been read
    value_after: Float[Tensor, "N ..."] | None = None  # [N, K] of K > 1 heads
    # of that head when the completion was sampled; no gradient
    behaviour_value: Float[Tensor, " N"] | None = None
    coupling: Coupling | None = None
    router: RouterUse | None = None  # no objective sees it: the step adds the auxiliary loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Signal: completion `chosen[p]` is preferred to completion `rejected[p]`; indices into the C
    completions.

    `probability` is the chance, in [0, 1], that the chosen one really is better; None where the data do not
    say.
    """

    chosen: Int[Tensor, " P"]
    rejected: Int[Tensor, " P"]
    probability: Float[Tensor, " P"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Signal: +1 preferred, -1 dispreferred, per completion."""

    label: Int[Tensor, " C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Signal: a number from outside per completion; completions of one prompt share a group index.

    Where steps of completions were rewarded, `step` has their rewards at the tokens that end them and NaN at all
    others; they are a part of `reward`.
    """

    reward: Float[Tensor, " C"]
    group: Int[Tensor, " C"]
    step: Float[Tensor, " N"] | None = None
    # Where the caller knows them, nobody waits for a GPU to learn them: the completions of each group, whose
    # indices are then 0, 1, 2, ... in order; and all pairs of a group whose rewards differ.
    sizes: tuple[int, ...] | None = None
    better: Int[Tensor, " P"] | None = None
    worse: Int[Tensor, " P"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """Signal: pairs, and the writer of each completion; completions in no pair are samples without a judgment.
    Completions of one prompt share a group index.
    """

    chosen: Int[Tensor, " P"]
    rejected: Int[Tensor, " P"]
    source: Int[Tensor, " C"]  # 0 the data, 1 the policy, 2 the reference, as in SOURCES
    group: Int[Tensor, " C"]


Signal = Pairs | Labels | Rewards | Hybrid


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """A whole optimizer step before its first gradient, as an objective sees it that couples units.

    `scores` are those of all completions, `mismatched` those of completions under the prompt of another
    group: each only if the objective requests it, and without gradients.
    """

    lengths: Int[Tensor, " C"]
    prompt: Int[Tensor, " C"]  # a digest of each completion's prompt, the same in every step and run
    signal: Signal
    scores: TokenScores | None = None
    mismatched: TokenScores | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Entries of a metric of which only the `counted` ones are averaged. Nobody waits for a GPU to learn how
    many there are.
    """

    values: Float[Tensor, " _"]
    counted: Bool[Tensor, " _"]

    def taken(self) -> Float[Tensor, " _"]:
        """The counted entries."""
        return self.values[self.counted]

    def numel(self) -> int:
        """How many entries are counted."""
        return self.taken().numel()

    def mean(self) -> Float[Tensor, ""]:
        """Mean of the counted entries."""
        return self.taken().mean()

    def tolist(self) -> list[float]:
        """The counted entries as numbers."""
        return self.taken().tolist()

    def item(self) -> float:
        """The only counted entry."""
        return self.taken().item()


Metric = Tensor | Entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What an objective returns: a loss per unit with its weight, and detached numbers to log.

    A metric is one entry per pair or completion it speaks of; the log shows the mean of all entries of a
    step.
    """

    per_unit: Float[Tensor, " U"]
    weight: Float[Tensor, " U"]
    metrics: Mapping[str, Metric]
