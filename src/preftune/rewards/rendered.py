"""Prompts and completions of rewards as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.data.render import Renderer
from preftune.errors import DataError, TrainingError
from preftune.rewards.base import Prompt, each
from preftune.types import Group, Message, Record


def ended_flags(columns: Mapping[str, Any], count: int) -> list[bool]:
    """Whether each completion ended by itself; all did, where nobody says."""
    return [flag is not False for flag in each(columns.get("ended"), count)]


def render(renderer: Renderer, prompt: Prompt, completions: Sequence[str], ended: Sequence[bool], where: str) -> Group:
    """Completions of one prompt as token ids; `where` names the first of them for an error."""
    turns = prompt if isinstance(prompt, str) else tuple(Message(role=t["role"], content=t["content"]) for t in prompt)
    try:
        return renderer.render(Record(prompt=turns, completions=tuple(completions), ended=tuple(ended), origin=where))
    except DataError as error:
        raise TrainingError(f"A reward cannot read its completions: {error}") from error
