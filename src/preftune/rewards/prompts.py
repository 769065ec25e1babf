"""A prompt as people and reward functions get it."""

from dataclasses import asdict

from preftune.types import Record


def prompt_text(record: Record) -> str:
    """The last user turn's text, or the plain prompt."""
    return record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content


def prompt_turns(record: Record) -> list[dict[str, str]] | None:
    """The whole prompt, if it is a dialogue."""
    return None if isinstance(record.prompt, str) else [asdict(turn) for turn in record.prompt]
