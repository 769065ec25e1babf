"""Completions drawn from a model in this process."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from preftune.data.options import DataOptions, Template
from preftune.data.render import Renderer, make_renderer
from preftune.errors import ConfigError, DataError, check_range
from preftune.model.attention_segments import without_flex
from preftune.model.limits import changing_length, positions_of
from preftune.model.load import load_on_device, load_tokenizer, resolve_model
from preftune.model.policy import model_head
from preftune.model.scoring import Head, head_logits
from preftune.model.whole_model import LoadOptions
from preftune.sampling.distribution import MAX_KEY, log_distribution, pick, uniforms
from preftune.sampling.engine import Engine, Rows, choose_engine, start_rows
from preftune.sampling.sampled import Sampled, completion_text
from preftune.sampling.tokens import end_tokens, textless_tokens

_CHUNK_ELEMENTS = 2**24  # logits of a given number of rows at a time, 64 MiB in fp32
# rows that have ended are dropped when they are this share of all: dropping copies what is kept
_COMPACT_AT = 0.125


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How completions are drawn. Temperature acts first, then top_k, top_p and min_p, each on what is left.

    Args:
        num_completions: completions per prompt.
        max_new_tokens: budget of a completion, end-of-turn token included; one that needs more is cut off
            there.
        temperature: logits are divided by it; 0 always takes the most probable token.
        top_p: draw from the smallest set of tokens that holds this much probability; 1 is all.
        top_k: sample from this number of most probable tokens; 0 is all.
        min_p: draw from tokens at least this many times as probable as the most probable one; 0 is all.
        stop: texts that end a completion: it is cut after the token with which one of them appears, and has
            ended.
        sample_batch: completions drawn at a time, those of one prompt always together.
    """

    num_completions: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list)
    sample_batch: int = 128

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "num_completions", "max_new_tokens", "sample_batch")
        check_range(self, "[0, inf)", "top_k")
        check_range(self, "[0, inf)", "temperature", expected="0 or more")
        check_range(self, "(0, 1]", "top_p")
        check_range(self, "[0, 1)", "min_p")
        if "" in self.stop:
            raise ConfigError(
                "stop holds an empty text", got=self.stop, expected="texts of a character or more"
            )
        if self.temperature == 0 and (self.num_completions > 1 or self.truncated):
            raise ConfigError(
                "num_completions, top_p, top_k and min_p have no effect at temperature 0",
                got="all completions would be the same",
                expected="their defaults, or a temperature above 0",
            )

    @property
    def truncated(self) -> bool:
        """Whether top_k, top_p or min_p exclude tokens."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def load_sampler(
    name: str,
    loading: LoadOptions,
    precision: Literal["fp32", "bf16"],
    device: str,
    rows: DataOptions | Template = "auto",
) -> tuple[PreTrainedModel, Renderer]:
    """A model by its name, to draw from, with the renderer of its prompts."""
    source = resolve_model(name)
    renderer = make_renderer(load_tokenizer(source, loading), rows)
    return load_on_device(source, loading, precision, device), renderer


@dataclass(frozen=True, kw_only=True)
class DrawnTurn:
    """Which part of a completion is drawn: a completion is drawn turn by turn if something answers in between."""

    budget: int  # tokens
    number: int = 0  # of the (first) completion
    place: int = 0  # of the turn in it


@dataclass(frozen=True, kw_only=True, eq=False)
class Blend:
    """A second model that contributes to every token: softmax((1 - share) z + share z_other), the geometric
    mixture of the two. A share below 0 leads away from the second model: beyond the first one, as seen from it.

    `within` is entered around every pass of the second model, which may be the first one without its adapter;
    `around` by who draws, around it all.
    """

    model: PreTrainedModel
    share: float
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, kw_only=True, eq=False)
class _Voice:
    """Rows of one model, and its share of the logits."""

    rows: Rows
    head: Head
    share: float
    within: Callable[[], AbstractContextManager[object]]

    def step(self, tokens: Tensor) -> None:
        with self.within():
            self.rows.step(tokens)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[np.ndarray],
    options: SampleOptions,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    keys: Sequence[int] | None = None,
    turns: Sequence[DrawnTurn] | None = None,
    engine: Engine | None = None,
    blend: Blend | None = None,
    stream: Callable[[np.ndarray], None] | None = None,
) -> list[list[Sampled]]:
    """`num_completions` completions of each prompt (token ids), in the prompts' order.

    What is drawn depends on the model, the prompt, the options, the seed, the prompt's key (an integer of its
    own; its place among the prompts if no keys are given) and the number of the completion. It depends
    neither on the other prompts nor on `sample_batch`, except for rounding: a sum in another order can move a
    probability by its last bits. `turns` are given where a prompt holds earlier turns of a completion. `engine`
    is what choose_engine returned for the model; it is called when `engine` is not given. With a `blend` the mixture of
    two models of one architecture is drawn from; `logp` is then of the mixture at temperature 1. With one prompt
    and one completion, `stream` gets the token ids so far after each token. No random state of torch or numpy is
    read or moved.
    """
    keys = range(len(prompts)) if keys is None else keys
    check_keys(keys, len(prompts))
    turns = [DrawnTurn(budget=options.max_new_tokens)] * len(prompts) if turns is None else turns
    check_prompt_room(model, prompts, [turn.budget for turn in turns])
    ends, textless = end_tokens(model, renderer), textless_tokens(model, renderer)
    results: list[list[Sampled]] = [[] for _ in prompts]
    progress(0, len(prompts))
    done = 0
    with evaluating(model), without_flex(model if blend is None else blend.model):
        engine = choose_engine(model)[0] if engine is None else engine
        for indices in _batches(prompts, engine, max(1, options.sample_batch // options.num_completions)):
            rows = [(i, k) for i in indices for k in range(options.num_completions)]
            budgets = np.array([turns[i].budget for i, _ in rows])
            most = int(budgets.max())
            noise = [uniforms(seed, keys[i], turns[i].number + k, most, turns[i].place) for i, k in rows]
            voices = _open(engine, model, blend, [prompts[i] for i in indices], options.num_completions)
            drawn = iter(_draw(voices, np.stack(noise), budgets, options, renderer, ends, textless, stream))
            for index in indices:
                results[index] = list(itertools.islice(drawn, options.num_completions))
            done += len(indices)
            progress(done, len(prompts))
    return results


def _open(
    engine: Engine,
    model: PreTrainedModel,
    blend: Blend | None,
    prompts: Sequence[np.ndarray],
    completions: int,
) -> list[_Voice]:
    """The models that contribute to every token."""
    found = []
    if blend is None or blend.share < 1:
        own = 1.0 if blend is None else 1.0 - blend.share
        rows = start_rows(engine, model, prompts, completions)
        found.append(_Voice(rows=rows, head=model_head(model), share=own, within=nullcontext))
    if blend is not None and blend.share != 0:
        with blend.within():
            rows = start_rows(engine, blend.model, prompts, completions)
        found.append(_Voice(rows=rows, head=model_head(blend.model), share=blend.share, within=blend.within))
    return found


def check_keys(keys: Sequence[int], count: int) -> None:
    """An error unless there is a key of 64 bits for each of `count` prompts."""
    if len(keys) != count:
        raise ConfigError("Every prompt wants a key", got=f"{len(keys)} keys", expected=f"{count}")
    if keys and not 0 <= min(keys) <= max(keys) < MAX_KEY:
        raise ConfigError(
            "The key of a prompt is out of range",
            got=f"{min(keys)} to {max(keys)}",
            expected="0 or more, less than 2**64",
        )


_NO_ROOM = (
    "Lower max_new_tokens (with an environment, rollout.total_tokens), or leave the prompt out of the file"
)


def check_prompt_room(model: PreTrainedModel, prompts: Sequence[np.ndarray], budgets: Sequence[int]) -> None:
    """An error unless each prompt leaves room for its budget of tokens."""
    config = model.config.get_text_config()
    room, change = positions_of(config), changing_length(config)
    for index, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
        if not len(prompt):
            raise DataError(
                f"Prompt {index} has no tokens", expected="at least one token before the completion"
            )
        if change is not None and len(prompt) + budget > change:
            raise DataError(
                f"Prompt {index} with its completion exceeds the model's original context",
                got=f"{len(prompt)} tokens and a budget of {budget}",
                expected=f"at most {change} together: beyond them the model's rotary positions change, also of "
                "tokens that are drawn already",
                do=_NO_ROOM,
            )
        if room is not None and len(prompt) + budget > room + 1:  # the last token is never read
            raise DataError(
                f"Prompt {index} leaves no room for a completion",
                got=f"{len(prompt)} tokens and a budget of {budget}",
                expected=f"at most {room + 1} together (max_position_embeddings and the last token)",
                do=_NO_ROOM,
            )


def _batches(prompts: Sequence[np.ndarray], engine: Engine, at_once: int) -> Iterator[list[int]]:
    """Prompts of like length together, longest first; of one length where the engine wants it."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    for _, part in itertools.groupby(order, key=lambda i: engine == "shared" or len(prompts[i])):
        indices = list(part)
        yield from (indices[start : start + at_once] for start in range(0, len(indices), at_once))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Within, no module is in training mode: no dropout, and no checkpointing, which would switch the cache
    off.

    And attention is plain, since FlexAttention is compiled for rows that are computed whole.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with without_flex(model):
            yield
    finally:
        for module in training:
            module.training = True


def _draw(
    voices: Sequence[_Voice],
    noise: Float[np.ndarray, "R T"],
    budgets: Int[np.ndarray, " R"],
    options: SampleOptions,
    renderer: Renderer,
    ends: frozenset[int],
    textless: Tensor | None,
    stream: Callable[[np.ndarray], None] | None,
) -> list[Sampled]:
    """Token by token until all rows have ended or used up their budgets; `noise` are the rows' uniforms. `stream`
    gets the token ids of the first row after each token.
    """
    stop = (*options.stop, *renderer.stop_texts)
    (count, budget), live = noise.shape, np.arange(len(noise))
    tokens, lengths = np.zeros((count, budget), dtype=np.int32), budgets.copy()
    ended = np.zeros(count, dtype=bool)
    behaviour, logp = np.zeros((2, count, budget), dtype=np.float32)
    for step in range(budget):
        found = _next_tokens(voices, noise[live, step], options, textless)
        tokens[live, step], behaviour[live, step], logp[live, step] = found.cpu().numpy()
        for row in live[~ended[live] & (budgets[live] > step)]:
            if int(tokens[row, step]) in ends or _stopped(tokens[row, : step + 1], stop, renderer):
                ended[row], lengths[row] = True, step + 1
        if stream is not None:
            stream(tokens[0, : step + 1])
        on = ~ended[live] & (budgets[live] > step + 1)
        if step + 1 == budget or not on.any():
            break
        # a row beyond its budget has no further position
        if on.mean() <= 1 - _COMPACT_AT or (budgets[live] <= step + 1).any():
            for voice in voices:
                voice.rows.keep(torch.from_numpy(np.flatnonzero(on)))
            live = live[on]
        for voice in voices:
            voice.step(torch.from_numpy(tokens[live, step].astype(np.int64)).to(found.device))
    return [
        Sampled(
            token_ids=tokens[row, :length].copy(),
            text=completion_text(tokens[row, :length], renderer, ends),
            ended=bool(ended[row]),
            behaviour_logp=behaviour[row, :length].copy(),
            logp=logp[row, :length].copy(),
        )
        for row, length in enumerate(lengths.tolist())
    ]


def _next_tokens(
    voices: Sequence[_Voice], noise: Float[np.ndarray, " R"], options: SampleOptions, textless: Tensor | None
) -> Float[Tensor, "3 R"]:
    """(token, behaviour_logp, logp) of each row in fp32, which holds ids up to 2^24: one wait for a GPU fetches
    all three.
    """
    chunk = max(1, _CHUNK_ELEMENTS // len(voices[0].head.weight))
    uniform = torch.from_numpy(noise).to(voices[0].rows.hidden.device)
    parts = [
        _choose(_logits(voices, slice(i, i + chunk)), uniform[i : i + chunk], options, textless)
        for i in range(0, len(noise), chunk)
    ]
    return torch.cat([torch.stack([one.float() for one in part]) for part in parts], dim=1)


def _logits(voices: Sequence[_Voice], rows: slice) -> Float[Tensor, "R V"]:
    """Logits of the mixture, without its normalizer."""
    first, *others = [head_logits(voice.rows.hidden[rows], voice.head) for voice in voices]
    if not others:
        return first
    return voices[0].share * first + voices[1].share * others[0]


def _choose(
    logits: Float[Tensor, "R V"],
    uniform: Float[Tensor, " R"],
    options: SampleOptions,
    textless: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    plain = logits.log_softmax(1)
    if textless is not None:
        logits = logits.index_fill(1, textless, float("-inf"))
    if options.temperature == 0:
        token = logits.argmax(1)
        logp = plain.gather(1, token[:, None]).squeeze(1)
        return token, torch.zeros_like(logp), logp
    drawn_from = plain if textless is None else logits.log_softmax(1)
    if options.temperature != 1 or options.truncated:
        drawn_from = log_distribution(
            logits,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
    token = pick(drawn_from.exp(), uniform)
    told = drawn_from
    if (
        textless is not None and not options.truncated
    ):  # with their share, as the trainer scores the vocabulary
        told = plain if options.temperature == 1 else (plain / options.temperature).log_softmax(1)
    behaviour, logp = (one.gather(1, token[:, None]).squeeze(1) for one in (told, plain))
    return token, behaviour, logp


def _stopped(ids: np.ndarray, stop: Sequence[str], renderer: Renderer) -> bool:
    """Whether a stop text appeared with the last token."""
    if not stop:
        return False
    # A token holds a byte of text or more. The few further tokens keep what a tokenizer does at a text's
    # start out of it.
    reach = max(len(text.encode("utf-8")) for text in stop) + 8
    tail = str(renderer.tokenizer.decode(ids[-reach:].tolist(), skip_special_tokens=True))
    return any(text in tail for text in stop)
