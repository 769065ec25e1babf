"""Prompts and completions of rewards as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.data.render import Renderer
from preftune.errors import DataError, TrainingError
from preftune.onpolicy.rewards.base import Prompt, at, each
from preftune.types import Group, Message, Record


def as_record(prompt: Prompt, completions: Sequence[str], ended: Sequence[bool]) -> Record:
    turns = prompt if isinstance(prompt, str) else tuple(Message(role=t["role"], content=t["content"]) for t in prompt)
    return Record(prompt=turns, completions=tuple(completions), ended=tuple(ended), origin="prompt")


def ended_flags(columns: Mapping[str, Any], count: int) -> list[bool]:
    """Whether each completion ended by itself; all did, where nobody says."""
    return [flag is not False for flag in each(columns.get("ended"), count)]


def render(renderer: Renderer, prompt: Prompt, completions: Sequence[str], ended: Sequence[bool], name: str) -> Group:
    """Completions of one prompt as token ids; an error that shows the first of them if they cannot be."""
    try:
        return renderer.render(as_record(prompt, completions, ended))
    except DataError as error:
        raise TrainingError(f"Reward {name!r} cannot read {at(0, completions)} with its prompt", got=str(error)) from error
