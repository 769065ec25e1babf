"""Preferences whose prompt is not a field of its own: what the two dialogues or texts share at their beginning."""

import re

from preftune.data.fields import as_text, as_turns, described
from preftune.errors import DataError, shown
from preftune.types import Message

_HH_MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}

Prompt = tuple[Message, ...] | str


def split_shared(chosen: object, rejected: object) -> tuple[Prompt, str, str]:
    """(prompt, chosen, rejected) of two dialogues or two texts; an answer of a transcript may come out empty."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _split_turns(as_turns(chosen, "chosen"), as_turns(rejected, "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            as_text(text, name)
        if is_transcript(chosen) and is_transcript(rejected):
            return _split_turns(transcript_turns(chosen), transcript_turns(rejected))
        return _split_texts(chosen, rejected)
    raise DataError("The fields chosen and rejected are not of one kind",
                    got=f"{described(chosen)} and {described(rejected)}", expected="two texts or two lists of turns")


def is_transcript(text: str) -> bool:
    """Whether the text is a dialogue in the HH layout: "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    return {mark.group(1) for mark in _HH_MARK.finditer(text)} == {"Human", "Assistant"}


def transcript_turns(text: str) -> tuple[Message, ...]:
    """The turns of a transcript, stripped. Consecutive turns of one speaker are one turn of several lines.

    They are joined by a single line break: a blank line before a text like "Human: ..." would make a new turn of it.
    """
    before, *pieces = _HH_MARK.split(text)
    turns = [Message(role="system", content=before.strip())] if before.strip() else []
    for mark, content in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = _HH_ROLES[mark], content.strip()
        if turns and turns[-1].role == role:
            content = "\n".join(part for part in (turns.pop().content, content) if part)
        turns.append(Message(role=role, content=content))
    return tuple(turns)


def _split_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Prompt, str, str]:
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        ends_with(turns, "assistant", name)
    if len(chosen) == 1 or len(rejected) == 1:
        raise DataError("The dialogues chosen and rejected share no prompt",
                        got=f"{len(chosen)} and {len(rejected)} turns",
                        expected="shared turns, then one answer each", do="Add a column prompt")
    if chosen[:-1] != rejected[:-1]:
        raise DataError("The prompts of chosen and rejected differ", got=first_difference(chosen[:-1], rejected[:-1]),
                        expected="the same turns before the last answer")
    ends_with(chosen[:-1], "user", "the shared prompt")
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def ends_with(turns: tuple[Message, ...], role: str, name: str) -> None:
    """An error unless the last turn is of that role."""
    if not turns or turns[-1].role != role:
        got = "the turns " + (", ".join(turn.role for turn in turns) or "none")
        raise DataError(f"The dialogue {name} does not end with a turn of the {role}", got=got,
                        expected=f"a last turn of the {role}")


def first_difference(left: tuple[Message, ...], right: tuple[Message, ...]) -> str:
    """Where two prompts part, in words."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return f"in turn {index + 1} {a.role}: {shown(a.content, 40)} and {b.role}: {shown(b.content, 40)}"
    return f"{len(left)} and {len(right)} turns"


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The common beginning, cut at a word boundary.

    A blank at the cut goes to the completions, as tokenisers join it to the word; a line break stays in the prompt.
    """
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = chosen[: next((k for k, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))]
    for end in range(len(shared), 0, -1):
        cut = end - 1 if shared[end - 1] == " " else end
        at_boundary = shared[end - 1].isspace()
        if at_boundary and shared[:cut].strip() and chosen[cut:].strip() and rejected[cut:].strip():
            return shared[:cut], chosen[cut:], rejected[cut:]
    raise DataError("The texts chosen and rejected share no prompt",
                    got=f"{shown(chosen, 40)} and {shown(rejected, 40)}",
                    expected="a common beginning of whole words", do="Add a column prompt")
