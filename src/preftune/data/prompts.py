"""The prompt of a row: a text or turns, a system text, earlier turns, a second column that belongs to the prompt."""

from collections.abc import Mapping

from preftune.data.dialogues import Prompt, answer_text, ends_with, transcript_prompt
from preftune.data.fields import (
    ROLES,
    as_list,
    as_text,
    as_turns,
    completion_of,
    described,
    not_blank,
    turns_of_text,
)
from preftune.data.row_view import RowView
from preftune.data.turn_shapes import exchange_in, exchanges_of, role_in
from preftune.errors import DataError, shown
from preftune.types import Completion, Message

PROMPTS = (
    "prompt",
    "question",
    "instruction",
    "messages",
    "conversations",
    "conversation",
    "query",
    "context",
    "input",
    "problem",
    "trajectory",
    "user_prompt",
    "user_input",
)
DIALOGUE = ("messages", "conversations", "conversation")
SYSTEM = ("system", "system_prompt", "system_message")
_JOINED = {"instruction": ("input", "context")}  # columns that follow the prompt in files of this layout


def read_prompt(view: RowView) -> Prompt:
    """The prompt. Plain text stays text unless there is a system text, a history or a transcript."""
    key, value = view.take("prompt", *PROMPTS)
    value = turns_of_text(value)
    if type(value) is not list and isinstance(value, Mapping):  # in this order, which is quicker
        value = _inside(value, key, view)
    system = _system(view)
    if not isinstance(value, str):
        turns = as_turns(value, key)
        ends_with(turns, "user", key)
        return with_system(turns, system)
    text = as_text(value, key)
    for name in _JOINED.get(key, ()):
        if name in view.row:
            view.used[name] = f"prompt, after {key}"
            if more := view.row[name]:
                text = f"{text}\n{as_text(more, name)}"
    history = _history(view)
    turns = transcript_prompt(text)
    if turns is not None:
        return with_system((*history, *turns), system)
    if not system and not history:
        return text
    return with_system((*history, Message(role="user", content=text)), system)


def _inside(value: Mapping, key: str, view: RowView) -> object:
    """The turns or the text in a prompt that is an object, as in files of OpenAI and of WebGPT."""
    if isinstance(value.get("messages"), list):
        if value.get("tools") and "tools" not in view.row:
            view.row = {**view.row, "tools": value["tools"]}
        view.used |= {f"{key}.messages": "prompt", f"{key}.tools": "tools"}
        return value["messages"]
    if isinstance(value.get("full_text"), str):
        view.used[f"{key}.full_text"] = "prompt"
        return value["full_text"]
    return value


def _system(view: RowView) -> str:
    name, value = view.get("system prompt", *SYSTEM)
    if not value:
        return ""
    if isinstance(value, list):
        turns = as_turns(value, name)
        if [turn.role for turn in turns] != ["system"]:
            raise DataError(
                f"The field {name} is not one system turn",
                got=described(value),
                expected="text, or one system turn",
            )
        return turns[0].content
    return as_text(value, name)


def _history(view: RowView) -> tuple[Message, ...]:
    """Earlier turns: a list of turns, or [[user, assistant], ...] in the way of Alpaca files."""
    if "history" not in view.row:
        return ()
    view.used["history"] = "earlier turns"
    if not view.row["history"]:
        return ()
    turns = []
    if isinstance(text := view.row["history"], str) and text[:1] != "[":
        raise DataError(
            "The field history is a text",
            got=described(text),
            expected="a list of turns, or [[user, assistant], ...]",
            do="To join it with the prompt, use --rows.columns prompt=history+prompt",
        )
    given = as_list(view.row["history"], "history", "pairs of texts")
    if isinstance(given[0], Mapping):
        return as_turns(given, "history")
    for index, pair in enumerate(given):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(
                f"The field history[{index}] is not a pair of texts",
                got=described(pair),
                expected="[user, assistant]",
            )
        for role, content in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role=role, content=as_text(content, f"history[{index}]")))
    return tuple(turns)


def with_system(turns: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    if not system or turns[0] == Message(role="system", content=system):
        return turns
    if turns[0].role == "system":
        raise DataError(
            "The row has two system texts",
            got=f"{shown(system, 40)} and {shown(turns[0].content, 40)}",
            expected="one",
        )
    return (Message(role="system", content=system), *turns)


def read_dialogue(view: RowView, weighted: bool = False) -> tuple[tuple[Message, ...], Completion]:
    """(prompt, answer) of a dialogue that ends with the assistant.

    With `weighted`, the completion begins with the first answer whose weight is not 0, if turns have weights.
    """
    key, value = view.take("prompt and completion", *DIALOGUE)
    turns = as_turns(value, key)
    ends_with(turns, "assistant", key)
    start = _first_scored(turns) if weighted else len(turns) - 1
    ends_with(
        turns[:start],
        "user",
        f"{key} before the {'last' if start == len(turns) - 1 else 'first scored'} answer",
    )
    prompt = with_system(turns[:start], _system(view))
    if start == len(turns) - 1:
        return prompt, answer_text(turns, key)
    return prompt, not_blank(completion_of(turns[start:], key), key)


def _first_scored(turns: tuple[Message, ...]) -> int:
    """The place of the first answer that is scored: where turns have weights, an answer without one counts as 1."""
    if all(turn.weight is None for turn in turns):
        return len(turns) - 1
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    return next((place for place in answers if turns[place].weight != 0), answers[-1])


def ends_with_answer(row: Mapping[str, object]) -> bool:
    """Whether the row's dialogue ends with the assistant."""
    last = last_turn(row)
    if exchange := exchange_in(last):
        return last[exchange[1]] not in (None, "")
    role = role_in(last)
    return isinstance(role, str) and ROLES.get(role.lower()) == "assistant"


def last_turn(row: Mapping[str, object]) -> Mapping[str, object]:
    name = next((name for name in DIALOGUE if row.get(name) is not None), DIALOGUE[0])
    turns = exchanges_of(row.get(name)) or turns_of_text(row.get(name))
    return turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping) else {}
