"""Completions drawn from a model in this process."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from preftune.data.options import Template
from preftune.data.render import Renderer, make_renderer
from preftune.errors import ConfigError
from preftune.policy.load import LoadOptions, load_model, load_tokenizer, pick_device, resolve_model


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How completions are drawn.

    Args:
        num_completions: completions per prompt.
        max_new_tokens: budget of a completion, end-of-turn token included; one that needs more is cut off there.
        temperature: logits are divided by it; 0 always takes the most probable token.
        top_p: draw from the smallest set of tokens that holds this much probability; 1 is all.
        top_k: draw from so many most probable tokens; 0 is all.
        sample_batch: completions drawn at a time.
    """

    num_completions: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    sample_batch: int = 128

    def __post_init__(self) -> None:
        for name, low in (("num_completions", 1), ("max_new_tokens", 1), ("top_k", 0), ("sample_batch", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is out of range", got=getattr(self, name), expected=f"at least {low}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError("temperature is out of range", got=self.temperature, expected="0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p is out of range", got=self.top_p, expected="(0, 1]")
        if self.temperature == 0 and (self.num_completions > 1 or self.top_p < 1 or self.top_k > 0):
            raise ConfigError(
                "num_completions, top_p and top_k have no effect at temperature 0", got="all completions would be the same",
                expected="their defaults, or a temperature above 0",
            )


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One completion: its tokens up to and including the end-of-turn token (if it came), its text without it."""

    token_ids: np.ndarray
    text: str
    ended: bool


def load_sampler(
    name: str, loading: LoadOptions, precision: Literal["fp32", "bf16"], device: str, template: Template = "auto"
) -> tuple[PreTrainedModel, Renderer]:
    """A model by its name, to draw from, with the renderer of its prompts."""
    source = resolve_model(name)
    renderer = make_renderer(load_tokenizer(source, loading), template)
    model = load_model(source, loading, torch.bfloat16 if precision == "bf16" else torch.float32)
    return model.to(pick_device(device)), renderer  # type: ignore[arg-type]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[np.ndarray],
    options: SampleOptions,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Sampled]]:
    """`num_completions` completions of each prompt (token ids), in the prompts' order. The same seed draws the same."""
    results: list[list[Sampled]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))  # like lengths together: little padding
    at_once = max(1, options.sample_batch // options.num_completions)
    progress(0, len(order))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), at_once):
            indices = order[start : start + at_once]
            drawn = _generate(model, renderer, [prompts[i] for i in indices], options)
            for position, index in enumerate(indices):
                mine = drawn[position * options.num_completions : (position + 1) * options.num_completions]
                results[index] = [_finish(ids, renderer) for ids in mine]
            progress(min(start + at_once, len(order)), len(order))
    return results


def _generate(
    model: PreTrainedModel, renderer: Renderer, prompts: Sequence[np.ndarray], options: SampleOptions
) -> list[np.ndarray]:
    """New token ids of each row, prompts padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), renderer.end_of_turn, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    greedy = options.temperature == 0
    chosen = {} if greedy else {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens, do_sample=not greedy, num_return_sequences=options.num_completions,
        eos_token_id=renderer.end_of_turn, pad_token_id=renderer.end_of_turn, **chosen,
    )  # fmt: skip
    with _no_generation_defaults(model):
        out = model.generate(  # type: ignore[operator]
            input_ids=torch.from_numpy(ids).to(model.device), attention_mask=torch.from_numpy(mask).to(model.device),
            generation_config=config,
        )  # fmt: skip
    return list(out[:, width:].cpu().numpy())  # type: ignore[index]


@contextmanager
def _no_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Within, what the model's generation_config.json says (a repetition penalty, say) does not mix into the draw."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _finish(ids: np.ndarray, renderer: Renderer) -> Sampled:
    ends = np.flatnonzero(ids == renderer.end_of_turn)
    kept = ids[: ends[0] + 1] if len(ends) else ids
    text = renderer.tokenizer.decode(kept[: len(kept) - (len(ends) > 0)].tolist(), skip_special_tokens=True)
    return Sampled(token_ids=kept.astype(np.int32), text=str(text), ended=len(ends) > 0)
