"""Rows of several answers to one prompt, with rewards, ranks, labels or pairs of their places."""

from collections.abc import Callable, Mapping
from itertools import permutations
from typing import TypeVar

from preftune.data.dialogues import Prompt, agreed, completion_or_dialogue
from preftune.data.fields import (
    Row,
    as_completion,
    as_list,
    as_pair,
    as_probability,
    as_reward,
    as_reward_or_none,
    as_source,
    described,
    each_of,
    first_key,
    has,
    value_of,
)
from preftune.data.format_labels import LABEL, one_answer
from preftune.data.format_pairs import JUDGED, without_blank
from preftune.data.prompts import PROMPTS, read_prompt
from preftune.data.row_view import RowView
from preftune.data.turn_shapes import role_in
from preftune.errors import DataError
from preftune.types import SOURCES, Completion, Record

T = TypeVar("T")

LISTS = ("completions", "answers", "responses", "generations", "candidates", "outputs")
_TEXTS = (
    "completion",
    "response",
    "answer",
    "text",
    "output",
    "content",
)  # of one entry of a list of completions
_SCORES = ("overall_score", "score", "reward", "rating", "pm_score")
_REWARDS = ("rewards", "scores", "ratings")
_REWARD = ("reward", "score")
_LISTED = ("rating", "score", "reward")  # where they hold a list
NUMBER_COLUMNS = (*_REWARDS, *_REWARD, "ranks")
_KNOWN = ("pairs", "probabilities", "labels", "rewards", "sources")
_ROLES = {
    "pairs": "pairs",
    "probabilities": "probabilities of the pairs",
    "labels": "labels of whole answers; for the steps of one answer, use --rows.format stepwise",
    "rewards": "rewards",
    "sources": "who wrote each completion",
}


def _listed(view: RowView) -> tuple[str, list]:
    key, value = view.take("completions", *LISTS)
    return key, as_list(value, key, "completions")


def _text(view: RowView, value: object, name: str, prompt: Prompt) -> Completion:
    before, completion = completion_or_dialogue(value, name, prompt)
    if agreed(prompt, before) != prompt:
        return as_completion(value, name)
    return without_blank(completion, prompt, view)


def _refuse_named(key: str, value: object) -> None:
    """An object with a text for each model is no list."""
    if (
        isinstance(value, Mapping)
        and len(value) > 1
        and all(isinstance(text, str) for text in value.values())
    ):
        first, second = list(value)[:2]
        raise DataError(
            f"The field {key} is an object of answers, not a list",
            got="the fields " + ", ".join(map(str, value)),
            expected="a list of answers, or two columns of answers",
            do=f"Name two of them, as in --rows.columns response_a={key}.{first},response_b={key}.{second}",
        )


def answers_of(view: RowView, prompt: Prompt) -> tuple[str, list[Completion]]:
    """(the column, the completions) of a list of answers, which may be objects with a text each."""
    key, value = view.take("completions", *LISTS)
    _refuse_named(key, value)
    values = as_list(value, key, "completions")
    texts: list[Completion] = []
    for index, value in enumerate(values):
        name = f"{key}[{index}]"
        if isinstance(value, Mapping) and role_in(value) is None and has(value, *_TEXTS):
            field = first_key(value, *_TEXTS)
            view.used[f"{key}.{field}"] = "completions"
            value, name = value[field], f"{name}.{field}"
        texts.append(_text(view, value, name, prompt))
    return key, texts


def _entries(
    view: RowView, prompt: Prompt, names: tuple[str, ...], convert: Callable[[object, str], T]
) -> tuple[list[Completion], list[T]]:
    """(texts, numbers) of a list of objects that hold a text and a number each."""
    key, entries = _listed(view)
    texts, numbers = [], []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise DataError(
                f"The field {key}[{index}] is not an object",
                got=described(entry),
                expected="a text and a number",
            )
        text, number = first_key(entry, *_TEXTS), first_key(entry, *names)
        texts.append(_text(view, value_of(entry, text), f"{key}[{index}].{text}", prompt))
        if number not in entry:
            value_of(entry, number)
        numbers.append(convert(entry[number], f"{key}[{index}].{number}"))
        view.used |= {f"{key}.{text}": "completions", f"{key}.{number}": number}
    view.used[key] = f"completions and their {first_key(entries[0], *names)}"
    return texts, numbers


def _columns_of(
    view: RowView, prompt: Prompt, role: str, *names: str, convert: Callable[[object, str], T]
) -> tuple[list[Completion], list[T]]:
    """(texts, numbers) of a list of completions with a list of numbers next to it."""
    key, texts = answers_of(view, prompt)
    number_key, given = view.take(role, *names)
    numbers = as_list(given, number_key, "numbers")
    if len(numbers) != len(texts):
        raise DataError(
            f"The fields {key} and {number_key} have different lengths",
            got=f"{len(texts)} and {len(numbers)}",
            expected="one number for each completion",
        )
    return texts, [convert(number, f"{number_key}[{index}]") for index, number in enumerate(numbers)]


def read_scored(view: RowView) -> Record:
    if view.has(*LISTS):
        prompt = read_prompt(view)
        texts, rewards = _columns_of(view, prompt, "rewards", *_REWARDS, *_LISTED, convert=as_reward_or_none)
    else:
        prompt, completion = one_answer(view)
        key, value = view.take("reward", *_REWARD)
        texts, rewards = [completion], [as_reward(value, key)]
    return view.record(prompt, texts, rewards=tuple(rewards))


def read_ultrafeedback(view: RowView) -> Record:
    prompt = read_prompt(view)
    texts, rewards = _entries(view, prompt, _SCORES, as_reward_or_none)
    _check_ranks(view, rewards)
    return view.record(prompt, texts, rewards=tuple(rewards))


def _check_ranks(view: RowView, rewards: list[float | None]) -> None:
    """Ranks next to the scores of entries must not contradict them; 1 is best."""
    key, entries = _listed(view)
    view.used[key] = "completions and their scores"
    ranks = [as_reward_or_none(entry.get("rank"), f"{key}.rank") for entry in entries]
    known = [(rank, score) for rank, score in zip(ranks, rewards, strict=True) if None not in (rank, score)]
    if not known:
        return
    view.used[f"{key}.rank"] = "checked: they must not contradict the scores"
    for (rank, score), (other_rank, other) in permutations(known, 2):
        if rank < other_rank and score < other:  # type: ignore[operator]
            raise DataError(
                f"The ranks in {key} contradict the scores",
                got=f"score {score:g} with rank {rank:g}, score {other:g} with rank {other_rank:g}",
                expected="better scores for better ranks; rank 1 is best",
                do=f"If the ranks mean something else, use --rows.ignore {key}.rank",
            )


def read_ranked(view: RowView) -> Record:
    prompt = read_prompt(view)
    if view.has("ranks"):
        texts, ranks = _columns_of(view, prompt, "ranks, 1 is best", "ranks", convert=as_reward)
    else:
        texts, ranks = _entries(view, prompt, ("rank",), as_reward)
    return view.record(prompt, texts, rewards=tuple(-rank for rank in ranks))


def read_best_first(view: RowView) -> Record:
    """A list of answers in the order of preference, which only the user can know."""
    prompt = read_prompt(view)
    key, value = view.take("completions, best first", *LISTS, *JUDGED)
    values = as_list(value, key, "answers, best first")
    texts = [_text(view, text, f"{key}[{index}]", prompt) for index, text in enumerate(values)]
    return view.record(prompt, texts, rewards=tuple(-float(index) for index in range(len(texts))))


def read_stepwise(view: RowView) -> Record:
    """Steps of one answer with a label each: the answer is preferred if all its steps are right."""
    prompt = read_prompt(view)
    key, steps = view.take("steps of the completion", *LISTS)
    texts = [str(as_completion(step, f"{key}[{k}]")) for k, step in enumerate(as_list(steps, key, "steps"))]
    name, value = view.take("labels of the steps", "labels")
    labels = [view.label(item, f"{name}[{k}]") for k, item in enumerate(as_list(value, name, "labels"))]
    if len(labels) != len(texts):
        raise DataError(
            f"The fields {key} and {name} have different lengths",
            got=f"{len(texts)} and {len(labels)}",
            expected="one label for each step",
        )
    right = None if None in labels else 1 if all(label == 1 for label in labels) else -1
    return view.record(prompt, ("\n".join(texts),), labels=(right,))


# --- all that a record can know ---


def read_groups(view: RowView) -> Record:
    row = view.row
    prompt = read_prompt(view)
    if entries := _has_entries(row, *LABEL):
        texts, labels = _entries(view, prompt, LABEL, view.label)
        return view.record(prompt, texts, labels=tuple(labels))
    assert not entries
    _, texts = answers_of(view, prompt)
    count = len(texts)
    given = row.get("pairs") or [] if has(row, *_KNOWN) else value_of(row, "pairs")
    if not isinstance(given, list):
        raise DataError(
            "The field pairs is not a list", got=described(given), expected="a list of [chosen, rejected]"
        )
    view.used |= {name: role for name, role in _ROLES.items() if name in row}
    pairs = tuple(as_pair(pair, f"pairs[{index}]", count) for index, pair in enumerate(given))
    return view.record(
        prompt,
        texts,
        pairs=pairs,
        probabilities=each_of(row, "probabilities", len(pairs), as_probability),
        labels=each_of(row, "labels", count, lambda v, name: None if v is None else view.label(v, name)),
        rewards=each_of(row, "rewards", count, as_reward_or_none),
        sources=each_of(row, "sources", count, as_source),
    )


def is_group(row: Row) -> bool:
    """A column sources may be about anything: it counts only if it holds our words."""
    sources = row.get("sources")
    known = isinstance(sources, list) and bool(sources) and all(source in SOURCES for source in sources)
    labels = isinstance(row.get("labels"), list) or _has_entries(row, *LABEL)
    return has(row, *PROMPTS) and has(row, *LISTS) and (has(row, "pairs") or known or labels)


def _has_entries(row: Row, *names: str) -> bool:
    """Whether the row's list of completions holds objects with one of these numbers."""
    entries = row.get(first_key(row, *LISTS))
    if isinstance(entries, Mapping):  # an object of lists
        return any(isinstance(entries.get(name), list) for name in names)
    return isinstance(entries, list) and any(
        isinstance(entry, Mapping) and has(entry, *names) for entry in entries
    )


def is_scored(row: Row) -> bool:
    listed = any(isinstance(row.get(name), list) for name in _LISTED)
    group = has(row, *LISTS) and (listed or has(row, *_REWARDS))
    single = has(row, *JUDGED) and has(row, *_REWARD) and not has(row, *LABEL)
    return has(row, *PROMPTS) and (group or single)


def is_ultrafeedback(row: Row) -> bool:
    return has(row, *PROMPTS) and _has_entries(row, *_SCORES)


def is_ranked(row: Row) -> bool:
    return has(row, *PROMPTS) and has(row, *LISTS) and (has(row, "ranks") or _has_entries(row, "rank"))
