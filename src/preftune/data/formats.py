"""The closed table of row formats: how each is recognized by its columns and converted to a Record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from preftune.data.dialogues import (
    Prompt,
    agreed,
    answer,
    answer_text,
    answer_turns,
    ends_with,
    part,
    split_shared,
)
from preftune.data.fields import (
    Row,
    as_completion,
    as_ended,
    as_label,
    as_list,
    as_pair,
    as_probability,
    as_reward,
    as_source,
    as_text,
    as_turns,
    described,
    each_of,
    first_key,
    has,
    is_blank,
    not_blank,
    refuse_unrendered,
    value_of,
)
from preftune.data.turn_extras import RENDERED, as_template_kwargs, as_tools
from preftune.errors import DataError, shown
from preftune.types import SOURCES, Completion, Message, Record

T = TypeVar("T")

DETECTION_ROWS = 20
EQUAL_PAIR = "chosen and rejected are equal"  # why a row is dropped
EMPTY = "empty completion"
_PROMPTS = ("prompt", "question", "instruction", "context", "messages", "conversations")
_TEXTS = ("completion", "response", "answer", "text", "output")  # of one entry of a list of completions
_COMPLETION = ("completion", "response", "output")
_LISTS = ("completions", "answers", "responses")
_CHOSEN, _REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
_PROBABILITY = ("probability", "chosen_prob", "chosen_probs")
_LABEL = ("label", "kto_tag")
_DIALOGUE = ("messages", "conversations")
_SCORES = ("overall_score", "score", "reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A row in order that carries no preference."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to lay out a row. `matches` looks at the columns only; `convert` checks everything."""

    name: str
    columns: str  # for people
    matches: Callable[[Row], bool]
    convert: Callable[[Row], Record | Drop]


def detect(rows: Sequence[Row]) -> Format:
    """The first format of the table that fits at least half of the first rows: a few bad rows do not hide it."""
    rows = rows[:DETECTION_ROWS]
    for form in FORMATS.values():
        if rows and sum(form.matches(row) for row in rows) * 2 >= len(rows):
            return form
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    known = "; ".join(f"{form.name} ({form.columns})" for form in FORMATS.values())
    raise DataError(
        "No format fits these rows",
        got="the columns " + (", ".join(columns) or "none"),
        expected=known,
        do='Name your columns with the option columns, as in {"chosen": "winner", "rejected": "loser"}',
    )


# --- prompts ---


def _prompt(row: Row) -> tuple[Prompt, set[str]]:
    """The prompt and the columns that it took. Plain text stays text unless there is a system text or a
    history.
    """
    key = first_key(row, *_PROMPTS, "input")
    value, used = value_of(row, key), {key}
    system_key = first_key(row, "system", "system_prompt")
    system = as_text(row[system_key], system_key) if row.get(system_key) else ""
    used |= {system_key} & row.keys()
    if not isinstance(value, str):
        turns = as_turns(value, key)
        ends_with(turns, "user", key)
        return _with_system(turns, system), used
    text = as_text(value, key)
    if key == "instruction" and row.get("input"):
        text = f"{text}\n{as_text(row['input'], 'input')}"
    used |= {"input"} & row.keys() if key == "instruction" else set()
    history = _history(row)
    used |= {"history"} & row.keys()
    if not system and not history:
        return text, used
    return _with_system((*history, Message(role="user", content=text)), system), used


def _history(row: Row) -> tuple[Message, ...]:
    """Earlier turns as [[user, assistant], ...], in the way of Alpaca files."""
    if not row.get("history"):
        return ()
    turns = []
    for index, pair in enumerate(as_list(row["history"], "history", "pairs of texts")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(
                f"The field history[{index}] is not a pair of texts",
                got=described(pair),
                expected="[user, assistant]",
            )
        for role, content in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role=role, content=as_text(content, f"history[{index}]")))
    return tuple(turns)


def _with_system(turns: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    if not system or turns[0] == Message(role="system", content=system):
        return turns
    if turns[0].role == "system":
        raise DataError(
            "The row has two system texts",
            got=f"{shown(system, 40)} and {shown(turns[0].content, 40)}",
            expected="one",
        )
    return (Message(role="system", content=system), *turns)


def _dialogue(row: Row) -> tuple[tuple[Message, ...], Completion, set[str]]:
    """(prompt, answer, columns used) of a dialogue that ends with the assistant."""
    key = first_key(row, *_DIALOGUE)
    turns = as_turns(value_of(row, key), key)
    ends_with(turns, "assistant", key)
    ends_with(turns[:-1], "user", f"{key} before the last answer")
    system_key = first_key(row, "system", "system_prompt")
    system = as_text(row[system_key], system_key) if row.get(system_key) else ""
    return _with_system(turns[:-1], system), answer_text(turns, key), {key} | ({system_key} & row.keys())


def _record(row: Row, used: set[str], prompt: Prompt, completions: Sequence[Completion], **signal) -> Record:
    refuse_unrendered(row)
    ended = as_ended(row["ended"], len(completions)) if completions and row.get("ended") is not None else ()
    columns = {name: value for name, value in row.items() if name not in used | {"ended", *RENDERED}}
    if row.get("tools") is not None:
        signal["tools"] = as_tools(row["tools"], "tools")
    if row.get("chat_template_kwargs") is not None:
        signal["chat_template_kwargs"] = as_template_kwargs(
            row["chat_template_kwargs"], "chat_template_kwargs"
        )
    return Record(prompt=prompt, completions=tuple(completions), ended=ended, columns=columns, **signal)


# --- pairs ---


def _pair(
    row: Row, used: set[str], prompt: Prompt, chosen: Completion, rejected: Completion
) -> Record | Drop:
    if chosen == rejected:
        return Drop(reason=EQUAL_PAIR)
    key = first_key(row, *_PROBABILITY)
    known = row.get(key) not in (None, "")  # a table has empty cells
    probabilities = (as_probability(row[key], key),) if known else ()
    return _record(
        row, used | {key}, prompt, (chosen, rejected), pairs=((0, 1),), probabilities=probabilities
    )


def _pairs(row: Row) -> Record | Drop:
    chosen_key, rejected_key = first_key(row, *_CHOSEN), first_key(row, *_REJECTED)
    if has(row, "messages") and not has(row, "prompt", *_CHOSEN):  # the chosen answer ends the messages
        prompt, chosen, used = _dialogue(row)
        before = ()
    else:
        prompt, used = _prompt(row)
        before, chosen = answer(value_of(row, chosen_key), chosen_key, prompt)
    rejected_before, rejected = answer(value_of(row, rejected_key), rejected_key, prompt)
    if before and rejected_before:
        before, chosen, rejected = part(
            (*before, *answer_turns(chosen)), (*rejected_before, *answer_turns(rejected))
        )
        chosen, rejected = not_blank(chosen, chosen_key), not_blank(rejected, rejected_key)
    prompt = agreed(prompt, before or rejected_before)
    return _pair(row, used | {chosen_key, rejected_key}, prompt, chosen, rejected)


def _dialogues(row: Row) -> Record | Drop:
    prompt, chosen, rejected = split_shared(value_of(row, "chosen"), value_of(row, "rejected"))
    if is_blank(chosen) or is_blank(rejected):  # in a transcript, the speaker's name with nothing behind it
        return Drop(reason=EMPTY)
    return _pair(row, {"chosen", "rejected"}, prompt, chosen, rejected)


# --- labels ---


def _labels(row: Row) -> Record:
    prompt, used = _prompt(row)
    key, label_key = first_key(row, *_COMPLETION), first_key(row, *_LABEL)
    completion = as_completion(value_of(row, key), key)
    label = as_label(value_of(row, label_key), label_key)
    return _record(row, used | {key, label_key}, prompt, (completion,), labels=(label,))


def _last_turn(row: Row) -> Row:
    turns = row.get(first_key(row, *_DIALOGUE))
    return turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping) else {}


def _messages_label(row: Row) -> Record:
    prompt, completion, used = _dialogue(row)
    place = row if has(row, *_LABEL) else _last_turn(row)
    key = first_key(place, *_LABEL)
    label = as_label(value_of(place if has(place, *_LABEL) else row, key), key)
    return _record(row, used | {key}, prompt, (completion,), labels=(label,))


def _completions(row: Row) -> Record:
    if has(row, *_DIALOGUE) and not has(row, "prompt"):
        prompt, completion, used = _dialogue(row)
    else:
        prompt, used = _prompt(row)
        key = first_key(row, *_COMPLETION)
        completion = as_completion(value_of(row, key), key)
        used |= {key}
    return _record(row, used, prompt, (completion,), labels=(1,))


def _prompts(row: Row) -> Record:
    prompt, used = _prompt(row)
    return _record(row, used, prompt, ())


# --- rewards ---


def _listed(row: Row) -> tuple[str, list]:
    key = first_key(row, *_LISTS)
    return key, as_list(value_of(row, key), key, "completions")


def _entries(row: Row, *number_names: str) -> tuple[str, list[Completion], list[float]]:
    """(key, texts, numbers) of a list of objects that hold a text and a number each."""
    key, entries = _listed(row)
    texts, numbers = [], []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise DataError(
                f"The field {key}[{index}] is not an object",
                got=described(entry),
                expected="a text and a number",
            )
        text, number = first_key(entry, *_TEXTS), first_key(entry, *number_names)
        texts.append(as_completion(value_of(entry, text), f"{key}[{index}].{text}"))
        numbers.append(as_reward(value_of(entry, number), f"{key}[{index}].{number}"))
    return key, texts, numbers


def _columns_of(
    row: Row, *number_names: str, convert: Callable[[object, str], T]
) -> tuple[set[str], list[Completion], list[T]]:
    """(columns used, texts, numbers) of a list of completions with a list of numbers beside it."""
    key, values = _listed(row)
    number_key = first_key(row, *number_names)
    numbers = as_list(value_of(row, number_key), number_key, "numbers")
    if len(numbers) != len(values):
        raise DataError(
            f"The fields {key} and {number_key} have different lengths",
            got=f"{len(values)} and {len(numbers)}",
            expected="one number for each completion",
        )
    texts = [as_completion(value, f"{key}[{index}]") for index, value in enumerate(values)]
    return (
        {key, number_key},
        texts,
        [convert(number, f"{number_key}[{index}]") for index, number in enumerate(numbers)],
    )


def _reward_if_known(value: object, name: str) -> float | None:
    return None if value is None else as_reward(value, name)


def _scored(row: Row) -> Record:
    prompt, used = _prompt(row)
    if has(row, *_LISTS):
        keys, texts, rewards = _columns_of(row, "rewards", "scores", convert=_reward_if_known)
    else:
        key, reward_key = first_key(row, *_COMPLETION), first_key(row, "reward", "score")
        texts, rewards = (
            [as_completion(value_of(row, key), key)],
            [as_reward(value_of(row, reward_key), reward_key)],
        )
        keys = {key, reward_key}
    return _record(row, used | keys, prompt, texts, rewards=tuple(rewards))


def _ultrafeedback(row: Row) -> Record:
    prompt, used = _prompt(row)
    key, texts, rewards = _entries(row, *_SCORES)
    return _record(row, used | {key}, prompt, texts, rewards=tuple(rewards))


def _ranked(row: Row) -> Record:
    prompt, used = _prompt(row)
    if has(row, "ranks"):
        keys, texts, ranks = _columns_of(row, "ranks", convert=as_reward)
    else:
        key, texts, ranks = _entries(row, "rank")
        keys = {key}
    return _record(row, used | keys, prompt, texts, rewards=tuple(-rank for rank in ranks))


# --- all that a record can know ---

_KNOWN = ("pairs", "probabilities", "labels", "rewards", "sources")


def _groups(row: Row) -> Record:
    prompt, used = _prompt(row)
    key, values = _listed(row)
    texts = [as_completion(value, f"{key}[{index}]") for index, value in enumerate(values)]
    count = len(texts)
    given = row.get("pairs") or [] if has(row, *_KNOWN) else value_of(row, "pairs")
    if not isinstance(given, list):
        raise DataError(
            "The field pairs is not a list", got=described(given), expected="a list of [chosen, rejected]"
        )
    pairs = tuple(as_pair(pair, f"pairs[{index}]", count) for index, pair in enumerate(given))
    return _record(
        row,
        used | {key, *_KNOWN},
        prompt,
        texts,
        pairs=pairs,
        probabilities=each_of(row, "probabilities", len(pairs), as_probability),
        labels=each_of(
            row, "labels", count, lambda value, name: None if value is None else as_label(value, name)
        ),
        rewards=each_of(row, "rewards", count, _reward_if_known),
        sources=each_of(row, "sources", count, as_source),
    )


def _is_group(row: Row) -> bool:
    """A column sources may be about anything: it counts only if it holds our words."""
    sources = row.get("sources")
    known = isinstance(sources, list) and bool(sources) and all(source in SOURCES for source in sources)
    return has(row, *_PROMPTS) and has(row, *_LISTS) and (has(row, "pairs") or known)


# --- the table ---


def _has_entries(row: Row, *names: str) -> bool:
    """Whether the row's list of completions holds objects with one of these numbers."""
    entries = row.get(first_key(row, *_LISTS))
    return isinstance(entries, list) and any(
        isinstance(entry, Mapping) and has(entry, *names) for entry in entries
    )


def _is_pair(row: Row) -> bool:
    return has(row, *_PROMPTS) and (has(row, *_CHOSEN) or has(row, "messages")) and has(row, *_REJECTED)


def _formats() -> tuple[Format, ...]:
    """In the order of detection: what needs more columns comes first."""
    return (
        Format(
            name="sharegpt",
            columns="conversations, chosen, rejected",
            convert=_pairs,
            matches=lambda row: (
                has(row, "conversations")
                and has(row, "chosen")
                and has(row, "rejected")
                and not has(row, "prompt")
            ),
        ),
        Format(name="pairs", columns="prompt, chosen, rejected", convert=_pairs, matches=_is_pair),
        Format(
            name="dialogues",
            columns="chosen, rejected with a shared beginning",
            convert=_dialogues,
            matches=lambda row: has(row, "chosen") and has(row, "rejected"),
        ),
        Format(
            name="ultrafeedback",
            columns="instruction, completions of {response, overall_score}",
            convert=_ultrafeedback,
            matches=lambda row: has(row, *_PROMPTS) and _has_entries(row, *_SCORES),
        ),
        Format(
            name="ranked",
            columns="prompt, completions, ranks; or completions of {completion, rank}",
            convert=_ranked,
            matches=lambda row: (
                has(row, *_PROMPTS) and has(row, *_LISTS) and (has(row, "ranks") or _has_entries(row, "rank"))
            ),
        ),
        Format(
            name="groups",
            columns="prompt, completions, pairs of their places; sources, probabilities, labels, rewards",
            convert=_groups,
            matches=_is_group,
        ),
        Format(
            name="scored",
            columns="prompt, completions, rewards; or prompt, completion, reward",
            convert=_scored,
            matches=_is_scored,
        ),
        Format(
            name="labels",
            columns="prompt, completion, label",
            convert=_labels,
            matches=lambda row: has(row, *_PROMPTS) and has(row, *_COMPLETION) and has(row, *_LABEL),
        ),
        Format(
            name="messages_label",
            columns="messages, label",
            convert=_messages_label,
            matches=lambda row: has(row, *_DIALOGUE) and (has(row, *_LABEL) or has(_last_turn(row), *_LABEL)),
        ),
        Format(
            name="completions",
            columns="prompt, completion; or messages that end with the assistant",
            convert=_completions,
            matches=_is_completion,
        ),
        Format(name="prompts", columns="prompt", convert=_prompts, matches=lambda row: has(row, *_PROMPTS)),
    )


def _is_scored(row: Row) -> bool:
    group = has(row, *_LISTS) and has(row, "rewards", "scores")
    single = has(row, *_COMPLETION) and has(row, "reward", "score") and not has(row, *_LABEL)
    return has(row, *_PROMPTS, "input") and (group or single)


def _is_completion(row: Row) -> bool:
    last = _last_turn(row)
    answered = last.get("role", last.get("from")) in ("assistant", "gpt", "bot", "model", "chatgpt")
    return (has(row, "prompt", "question", "instruction") and has(row, *_COMPLETION)) or answered


FORMATS: Mapping[str, Format] = {form.name: form for form in _formats()}
