"""Keywords of a Python call as flags of the command line."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import yaml


def keyword_flags(settings: Mapping[str, Any]) -> list[str]:
    """Keywords as flags: one sentence and one set of checks for both."""
    words: list[str] = []
    for name, value in settings.items():
        flag = name.replace("__", ".")
        if isinstance(value, Mapping) and flag not in ("columns", "rows.columns", "chat_template_kwargs"):
            words += keyword_flags({f"{flag}.{inner}": one for inner, one in value.items()})
        elif value is not None:
            words.append(f"--{flag}={_text(value)}")
    return words


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # YAML reads 1e-06 as text
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).strip().removesuffix("\n...").strip()
