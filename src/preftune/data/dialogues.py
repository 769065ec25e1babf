"""Preferences whose prompt is not a separate field: what the two dialogues or texts share at their
beginning.
"""

import re
from collections.abc import Mapping

from preftune.data.fields import (
    ROLES,
    as_completion,
    as_text,
    as_turns,
    completion_of,
    described,
    not_blank,
    turns_of_text,
)
from preftune.data.turn_shapes import role_in
from preftune.errors import DataError, shown
from preftune.types import Completion, Message

_HH_MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_LINE_MARK = re.compile(r"\n+(?=(?:Human|Assistant):)")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}

Prompt = tuple[Message, ...] | str


def split_shared(chosen: object, rejected: object) -> tuple[Prompt, Completion, Completion]:
    """(prompt, chosen, rejected) of two dialogues or two texts; an answer of a transcript may come out empty."""
    chosen, rejected = turns_of_text(chosen), turns_of_text(rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _split_turns(as_turns(chosen, "chosen"), as_turns(rejected, "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            as_text(text, name)
        if is_transcript(chosen) and is_transcript(rejected):
            return _split_turns(transcript_turns(chosen), transcript_turns(rejected))
        return _split_texts(chosen, rejected)
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, (list, Mapping)):
            as_text(value, name)
    raise DataError(
        "The fields chosen and rejected are not of one kind",
        got=f"{described(chosen)} and {described(rejected)}",
        expected="two texts or two lists of turns",
    )


def is_transcript(text: str) -> bool:
    """Whether the text is a dialogue in the HH layout: "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    return {mark.group(1) for mark in _HH_MARK.finditer(text)} == {"Human", "Assistant"}


def transcript_dialogue(value: object) -> tuple[Message, ...] | None:
    """The turns of a text in the HH layout that begins with the human; None for anything else."""
    if not isinstance(value, str) or "Human:" not in value or not value.lstrip().startswith("Human:"):
        return None
    text = f"\n\n{value.strip()}"
    if "\n\nAssistant:" not in text:  # single line breaks between the turns
        text = "\n\n" + _LINE_MARK.sub("\n\n", text).strip()
    marks = {mark.group(1) for mark in _HH_MARK.finditer(text)}
    return transcript_turns(text) if "Assistant" in marks or value.startswith("\n\nHuman:") else None


def transcript_prompt(text: str) -> tuple[Message, ...] | None:
    """The turns of a transcript that ends where the assistant would answer; None for any other text."""
    turns = transcript_dialogue(text)
    if turns is None:
        return None
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    return turns if turns[-1].role == "user" else None


def transcript_turns(text: str) -> tuple[Message, ...]:
    """The turns of a transcript, stripped. Consecutive turns of one speaker are one turn of several lines.

    They are joined by a single line break: a blank line before a text like "Human: ..." would make a new turn
    of it.
    """
    before, *pieces = _HH_MARK.split(text)
    turns = [Message(role="system", content=before.strip())] if before.strip() else []
    for mark, content in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = _HH_ROLES[mark], content.strip()
        if turns and turns[-1].role == role:
            content = "\n".join(part for part in (turns.pop().content, content) if part)
        turns.append(Message(role=role, content=content))
    return tuple(turns)


def _split_turns(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], Completion, Completion]:
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        ends_with(turns, "assistant", name)
    if len(chosen) == 1 or len(rejected) == 1:
        raise DataError(
            "The dialogues chosen and rejected share no prompt",
            got=f"{len(chosen)} and {len(rejected)} turns",
            expected="shared turns, then one answer each",
            do="Add a column prompt",
        )
    return part(chosen, rejected)


def part(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], Completion, Completion]:
    """(the turns before the first answer that differs, and what follows in each); both end with the
    assistant.

    Where another turn than the assistant's differs first, it is the prompts that differ: no preference among
    answers.
    """
    differing = (k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    place = next(differing, len(chosen) - 1 if len(chosen) == len(rejected) else -1)
    if place < 0 or not chosen[place].role == rejected[place].role == "assistant":
        raise DataError(
            "The prompts of chosen and rejected differ",
            got=first_difference(chosen[:-1], rejected[:-1]),
            expected="the same turns up to an answer of the assistant",
        )
    ends_with(chosen[:place], "user", "the shared prompt")
    return (
        chosen[:place],
        completion_of(chosen[place:], "chosen"),
        completion_of(rejected[place:], "rejected"),
    )


def ends_with(turns: tuple[Message, ...], role: str, name: str) -> None:
    """An error unless the last turn is of that role; what a tool returned may be where a user asks."""
    if not turns or turns[-1].role not in ((role, "tool") if role == "user" else (role,)):
        got = "the turns " + (", ".join(turn.role for turn in turns) or "none")
        raise DataError(
            f"The dialogue {name} does not end with a turn of the {role}",
            got=got,
            expected=f"a last turn of the {role}",
        )


def first_difference(left: tuple[Message, ...], right: tuple[Message, ...]) -> str:
    """Where two prompts part, in words."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return (
                f"in turn {index + 1} {a.role}: {shown(a.content, 40)} and {b.role}: {shown(b.content, 40)}"
            )
    return f"{len(left)} and {len(right)} turns"


# --- a separate prompt, and answers that may repeat it ---


def answer(value: object, name: str, prompt: Prompt) -> tuple[tuple[Message, ...], Completion]:
    """(the turns before the answer, if the whole dialogue is there; the answer, or the trajectory)."""
    value = turns_of_text(value)
    if not isinstance(value, (list, Mapping)):
        turns = transcript_dialogue(value)
        if turns is None:
            return (), as_completion(value, name)
    else:
        turns = as_turns(value, name)
    if turns[0].role == "assistant" and not _repeats(turns, prompt):
        return (), not_blank(completion_of(turns, name), name)
    ends_with(turns, "assistant", name)
    return turns[:-1], answer_text(turns, name)


def completion_or_dialogue(
    value: object, name: str, prompt: Prompt
) -> tuple[tuple[Message, ...], Completion]:
    """Like `answer`, but only a text in the HH layout and turns that begin with a user are a whole dialogue."""
    value = turns_of_text(value)
    first = value[0] if isinstance(value, list) and value else None
    role = str(role_in(first)).lower()
    if ROLES.get(role) in ("user", "system") or transcript_dialogue(value) is not None:
        return answer(value, name, prompt)
    return (), as_completion(value, name)


def _repeats(turns: tuple[Message, ...], prompt: Prompt) -> bool:
    """Whether a dialogue that the assistant begins has the prompt in it, and is no continuation of the prompt."""
    if isinstance(prompt, str):
        return any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in turns)
    first = next((turn for turn in prompt if turn.role != "system"), None)
    if first is not None and turns[0].role != "system" and turns[0] != first:
        return False
    spoken = _spoken(prompt)
    return _spoken(turns)[: len(spoken)] == spoken


def answer_text(turns: tuple[Message, ...], name: str) -> Completion:
    """The last turn: its text, or the turn itself if it has more than text."""
    place = f"{name}[{len(turns) - 1}]"
    return not_blank(completion_of(turns[-1:], place), place)


def answer_turns(completion: Completion) -> tuple[Message, ...]:
    """The turns of a completion."""
    return (Message(role="assistant", content=completion),) if isinstance(completion, str) else completion


def agreed(prompt: Prompt, before: tuple[Message, ...]) -> Prompt:
    """The one prompt of a row that may repeat it before chosen and rejected; a repeated prompt may add system
    turns.
    """
    if not before or before == prompt:
        return prompt
    ends_with(before, "user", "chosen before its last answer")
    if isinstance(prompt, str):
        if any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in before):
            return before
        difference = f"{shown(prompt, 40)} and {shown(before[-1].content, 40)}"
    else:
        if _spoken(prompt) == _spoken(before):
            return max(prompt, before, key=len)
        difference = first_difference(prompt, before)
    raise DataError(
        "The prompt is not the one that chosen and rejected repeat",
        got=difference,
        expected="the same prompt",
    )


def _spoken(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(turn for turn in turns if turn.role != "system")


# --- two texts ---


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The common beginning, cut at a word boundary.

    A blank at the cut goes to the completions, as tokenizers join it to the word; a line break stays in the
    prompt.
    """
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = chosen[: next((k for k, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))]
    for end in range(len(shared), 0, -1):
        cut = end - 1 if shared[end - 1] == " " else end
        at_boundary = shared[end - 1].isspace()
        if at_boundary and shared[:cut].strip() and chosen[cut:].strip() and rejected[cut:].strip():
            return shared[:cut], chosen[cut:], rejected[cut:]
    raise DataError(
        "The texts chosen and rejected share no prompt",
        got=f"{shown(chosen, 40)} and {shown(rejected, 40)}",
        expected="a common beginning of whole words",
        do="Add a column prompt",
    )
