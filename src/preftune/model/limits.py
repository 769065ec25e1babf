"""What a model can read: how many positions it has."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from preftune.model.adapter_files import is_adapter
from preftune.model.load import base_of, resolve_model
from preftune.model.whole_model import LoadOptions

_EXTENDS = ("dynamic", "yarn", "linear")
"""Rotary scalings that extend a model beyond the positions which its configuration states."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a model, as its files state them."""

    positions: int | None = None


def shared_limits(names: Iterable[str], loading: LoadOptions) -> Limits:
    """The limits of models that read the same rows."""
    known = [model_limits(name, loading).positions for name in names]
    return Limits(positions=min((count for count in known if count is not None), default=None))


def model_limits(name: str, loading: LoadOptions) -> Limits:
    """The limits of a model by its name; none where its files do not state any."""
    source = resolve_model(name)
    while is_adapter(source):
        source = base_of(source)
    if source.endswith(".gguf"):
        return Limits()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=loading.trust_remote_code)
    except (OSError, ValueError, KeyError):  # the error comes when the model is loaded
        return Limits()
    return Limits(positions=positions_of(config.get_text_config()))


def _rotary(config: Any) -> tuple[set[str], list[int]]:
    """(kinds of rotary embeddings, original context lengths) that a text configuration names."""
    whole = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [whole, *(part for part in whole.values() if isinstance(part, dict))]
    kinds = {str(kind) for part in parts for name in ("rope_type", "type") if (kind := part.get(name))}
    named = [getattr(config, "original_max_position_embeddings", None)]
    named += [part.get("original_max_position_embeddings") for part in parts]
    return kinds, [length for length in named if isinstance(length, int)]


def changing_length(config: Any) -> int | None:
    """The number of tokens above which a growing row changes what its earlier tokens mean, if there is one."""
    kinds, original = _rotary(config)
    if not kinds & {"dynamic", "longrope"}:
        return None
    lengths = (
        original if "longrope" in kinds and original else [getattr(config, "max_position_embeddings", None)]
    )
    return min((length for length in lengths if isinstance(length, int)), default=None)


def positions_of(config: Any) -> int | None:
    """The most positions of a row under a text configuration."""
    if _rotary(config)[0] & set(_EXTENDS):
        return None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return None
