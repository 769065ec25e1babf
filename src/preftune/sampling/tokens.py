"""Which token ids end a completion, and which are never drawn since no text belongs to them."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from preftune.data.render import Renderer
from preftune.errors import ModelError, shown


def end_tokens(model: PreTrainedModel, renderer: Renderer) -> frozenset[int]:
    """The tokens that end an answer and every end token that the model's generation configuration names."""
    named: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = named if isinstance(named, list | tuple) else [named]
    known = [token for token in more if token is not None]
    if not all(type(token) is int and token >= 0 for token in known):
        raise ModelError(
            f"The generation configuration of {model.name_or_path} names an end that is no token",
            got=f"eos_token_id {shown(named)}",
            expected="a token id or a list of token ids",
            do="Correct generation_config.json or config.json",
        )
    return frozenset({*renderer.stop_ids, *known})


def textless_tokens(model: PreTrainedModel, renderer: Renderer) -> Tensor | None:
    """The ids of the model's vocabulary that its tokenizer does not have, on the model's device; None if there
    are none.

    Embeddings are often padded to a round size; such rows are never trained, but a model may draw them.
    """
    head = model.get_output_embeddings()
    size = int(head.weight.shape[0]) if head is not None else 0
    missing = _missing(renderer.tokenizer, size)
    return torch.tensor(missing, device=model.device) if missing else None


@lru_cache(maxsize=8)
def _missing(tokenizer: Any, size: int) -> tuple[int, ...]:
    known = set(tokenizer.get_vocab().values())
    return tuple(token for token in range(size) if token not in known)
