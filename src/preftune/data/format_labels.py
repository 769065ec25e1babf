"""Rows of one answer, with a label or without; rows of a prompt alone."""

from collections.abc import Mapping

from preftune.data.dialogues import Prompt, agreed, completion_or_dialogue
from preftune.data.fields import (
    Row,
    as_reward_or_none,
    as_text,
    described,
    first_key,
    has,
    turns_of_text,
    value_of,
)
from preftune.data.format_pairs import ANSWER, JUDGED, several_answers, without_blank
from preftune.data.prompts import DIALOGUE, PROMPTS, ends_with_answer, last_turn, read_dialogue, read_prompt
from preftune.data.row_view import RowView
from preftune.errors import DataError
from preftune.types import Completion, Message, Record, TurnExtras

LABEL = ("label", "kto_tag")


def one_answer(view: RowView, names: tuple[str, ...] = JUDGED) -> tuple[Prompt, Completion]:
    """(prompt, completion) of a row with one answer, which may repeat the prompt."""
    prompt = read_prompt(view)
    key, value = view.take("completion", *names)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        raise several_answers(key, value)
    before, completion = completion_or_dialogue(value, key, prompt)
    completion = without_blank(completion, prompt, view)
    return agreed(prompt, before), _with_reasoning(completion, view)


def _with_reasoning(completion: Completion, view: RowView) -> Completion:
    """The completion with the reasoning of a separate column."""
    name, reasoning = view.get("reasoning of the completion", "reasoning_content")
    if not reasoning:
        return completion
    if not isinstance(completion, str):
        raise DataError(
            f"The column {name} belongs to a completion that is text, and here the completion is a list of turns",
            got=described(reasoning),
            expected=f"a completion that is text, or {name} in its last turn",
        )
    extras = TurnExtras(reasoning=as_text(reasoning, name))
    return (Message(role="assistant", content=completion, extras=extras),)


def read_labels(view: RowView) -> Record:
    prompt, completion = one_answer(view)
    key, value = view.take("label", *LABEL)
    return _labeled(view, prompt, completion, view.label(value, key))


def _labeled(view: RowView, prompt: Prompt, completion: Completion, label: int | None) -> Record:
    name, value = view.get(
        "checked: it must not contradict the labels of a prompt", "reward", "score", "rating"
    )
    if value is not None and view.labels is not None:
        view.labels.check(prompt, label, as_reward_or_none(value, name), name)
    return view.record(prompt, (completion,), labels=(label,))


def read_messages_label(view: RowView) -> Record:
    prompt, completion = read_dialogue(view, weighted=True)
    if view.has(*LABEL):
        key, value = view.take("label", *LABEL)
    else:
        place = last_turn(view.row)
        key = first_key(place, *LABEL)
        value = value_of(place if has(place, *LABEL) else view.row, key)
        _refuse_earlier_labels(view)
        view.used[f"{first_key(view.row, *DIALOGUE)}.{key}"] = "label"
    return _labeled(view, prompt, completion, view.label(value, key))


def _refuse_earlier_labels(view: RowView) -> None:
    """The label of the last turn alone is read."""
    name = first_key(view.row, *DIALOGUE)
    turns = turns_of_text(view.row[name])
    for index, turn in enumerate(turns[:-1] if isinstance(turns, list) else ()):
        if isinstance(turn, Mapping) and has(turn, *LABEL):
            raise DataError(
                f"An earlier turn of {name} has a label too",
                got=f"a label of {name}[{index}]",
                expected="one label, of the last turn",
                do="Give each labelled answer a row that ends with it",
            )


def read_completion(view: RowView) -> Record:
    if view.has(*DIALOGUE) and not (view.has("prompt") and view.has(*ANSWER)):
        prompt, completion = read_dialogue(view, weighted=True)
    else:
        prompt, completion = one_answer(view, ANSWER)
    return view.record(prompt, (completion,))


def read_prompts_alone(view: RowView) -> Record:
    return view.record(read_prompt(view), ())


def is_completion(row: Row) -> bool:
    names = ("prompt", "question", "instruction", "query")
    return (has(row, *names) and has(row, *ANSWER)) or ends_with_answer(row)


def is_labels(row: Row) -> bool:
    return has(row, *PROMPTS) and has(row, *JUDGED) and has(row, *LABEL)


def is_messages_label(row: Row) -> bool:
    return has(row, *DIALOGUE) and (has(row, *LABEL) or has(last_turn(row), *LABEL))


def is_prompt(row: Row) -> bool:
    return has(row, *PROMPTS)
