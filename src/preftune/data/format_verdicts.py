"""Rows of two answers and a verdict: which one is better, by name, by number, by a signed strength, or a tie."""

import json
import re
from collections.abc import Mapping

from preftune.data.dialogues import Prompt, agreed, answer, part
from preftune.data.fields import (
    ColumnFault,
    Row,
    as_reward_or_none,
    as_text,
    as_turns,
    described,
    first_key,
    has,
    is_number,
    turns_of_text,
)
from preftune.data.format_pairs import pair_record, without_blank
from preftune.data.label_words import key_shown, verdict_word
from preftune.data.prompts import PROMPTS, read_prompt
from preftune.data.row_view import TIE, Drop, RowView
from preftune.errors import DataError
from preftune.types import Completion, Message, Record

_BASES = [
    "response",
    "answer",
    "completion",
    "output",
    "conversation",
    "conv",
    "conversations",
    "messages",
    "candidate",
    "assistant",
    "reply",
    "generation",
    "summary",
    "text",
    "human_ref",
    "model_output",
    "model_response",
]
_SIDE = re.compile(rf"({'|'.join(_BASES)})_?(a|b|0|1|2)", re.IGNORECASE)
_ANY_SIDE = re.compile(rf"({'|'.join(_BASES)})_?([a-z]|\d+)", re.IGNORECASE)
_ENDINGS = (("a", "b"), ("0", "1"), ("1", "2"))
_STRENGTH = ("preference_strength", "overall_preference")  # below 0: the first answer is better
VERDICT = (
    "winner",
    "preference",
    "preferred",
    "preferred_response",
    "better",
    "better_response",
    "better_response_id",
    "safer_response_id",
    "best",
    "choice",
    "verdict",
    "human_preference",
)
_SCORE_BASES = ("score", "reward", "rating", "votes", "upvotes")
VERDICT_COLUMNS = (
    *VERDICT,
    *_STRENGTH,
    *(f"{base}_{end}" for base in _BASES for end in ("a", "b", "0", "1", "2")),
    *(f"winner_model_{end}" for end in ("a", "b")),
    "winner_tie",
    "human_ref_A",
    "human_ref_B",
)
VERDICT_COMPANIONS = frozenset(
    (
        "preference_statement",
        "preference_elaboration",
        "individual_preference",
        "three_most_similar_preferences",
        "all_preferences_unprocessed",
        "raw_preference",
        "category_tag",
        "conv_metadata",
        "full_conversation",
        "score_ratio",
        "upvote_ratio",
        "toxic_chat_tag",
        "openai_moderation",
        *(f"is_response_{k}_safe" for k in (0, 1)),
    )
)


def sides(row: Row) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """(the columns of the two answers, their endings), or None unless the row has exactly two."""
    found: dict[str, dict[str, str]] = {}
    for name in row:
        match = _SIDE.fullmatch(name) if isinstance(name, str) else None
        if match and row[name] is not None:
            found.setdefault(match[1].lower(), {})[match[2].lower()] = name
    for names in found.values():
        if len(names) == 2 and tuple(sorted(names)) in _ENDINGS:
            first, second = sorted(names)
            return (names[first], names[second]), (first, second)
    return None


def is_side(name: str) -> bool:
    """Whether a name is that of one of several answers: response_3, answer_c."""
    return _ANY_SIDE.fullmatch(name) is not None


def _one_hot(row: Row, ends: tuple[str, str]) -> tuple[str, str, str] | None:
    names = (f"winner_model_{ends[0]}", f"winner_model_{ends[1]}", "winner_tie")
    return names if all(name in row for name in names[:2]) else None


def _scores(row: Row, ends: tuple[str, str]) -> tuple[str, str] | None:
    """The columns of a score for each of the two answers: score_a, or response_a_score."""
    names = {name.lower(): name for name in row if isinstance(name, str)}
    answers = [name.lower() for name in (sides(row) or (("", ""), ends))[0]]
    for base in _SCORE_BASES:
        for first, second in (
            tuple(f"{base}_{end}" for end in ends),
            tuple(f"{name}_{base}" for name in answers),
        ):
            if has(row, names.get(first, "")) and has(row, names.get(second, "")):
                return names[first], names[second]
    return None


def _verdict_names(row: Row, ends: tuple[str, str]) -> list[str]:
    names = [name for name in (*VERDICT, *_STRENGTH) if row.get(name) not in (None, "")]
    label = row.get("label")
    if isinstance(label, str) and not is_number(label) and not isinstance(verdict_word(label, ends), str):
        names.append("label")
    if sides_are_refs(row) and isinstance(row.get("labels"), (int, float, str)):
        names.append("labels")
    return names


def sides_are_refs(row: Row) -> bool:
    """Whether the row is of SHP, whose column labels is 1 where answer A is better."""
    return "human_ref_A" in row and "human_ref_B" in row


def _verdict(view: RowView, names: tuple[str, str], ends: tuple[str, str]) -> int | None:
    """0 or 1: the better answer; None for a tie. All columns that state it must agree."""
    row, said = view.row, {}
    answers = [row[name] for name in names]
    for name in _verdict_names(row, ends):
        named = [str(row.get(f"model_{end}")) for end in ends]
        value = row[name]
        for told in (named, answers):  # the name of the better model, or the better answer itself
            if isinstance(value, str) and value in told and told[0] != told[1]:
                value = ends[told.index(value)]
        column = name if view.labels is None else view.labels.column_of(name)
        said[name] = _read_verdict(value, name, ends, column)
        view.used[name] = "which answer is better"
    if hot := _one_hot(row, ends):
        said[hot[0]] = _read_one_hot([row.get(name) for name in hot], hot)
        view.used |= {name: "which answer is better" for name in hot if name in row}
    if len(set(said.values())) > 1:
        columns = list(said)
        raise ColumnFault(
            "Two columns disagree about which answer is better",
            got=", ".join(f"{name} {described(row.get(name))}" for name in columns),
            expected="one verdict",
            do=f"Choose one of them, as in --rows.ignore {','.join(columns[1:])}",
        )
    verdict = next(iter(said.values()))
    if scores := _scores(row, ends):
        _check_scores(view, scores, verdict)
    return verdict


def _read_verdict(value: object, name: str, ends: tuple[str, str], column: str) -> int | None:
    if name in _STRENGTH and (not isinstance(value, str) or is_number(value)):
        strength = as_reward_or_none(value, name)
        return None if not strength else int(strength > 0)
    if name == "labels":
        number = as_reward_or_none(value, name)
        verdict = {1.0: 0, 0.0: 1}.get(-1.0 if number is None else number, "1 means A, 0 means B")
    else:
        verdict = verdict_word(value, ends)
    if isinstance(verdict, str):
        raise ColumnFault(
            f"The verdict in {name} is not understood: {verdict}",
            got=described(value),
            expected=f"{ends[0]}, {ends[1]} or tie",
            do=_meanings(value, column, ends),
        )
    return verdict


def _meanings(value: object, column: str, ends: tuple[str, str]) -> str:
    """How to state what the values of a verdict mean; a fraction lies between the two endings."""
    if isinstance(value, float) and not value.is_integer() and ends == ("1", "2"):
        return (
            "If it is below 1.5 where the first answer is better, use --rows.columns "
            f"'winner={column}{{<1.5:1,>1.5:2,1.5:tie}}'"
        )
    return (
        f"State what each value means with {ends[0]}, {ends[1]} or tie in place of each ?, as in --rows.columns "
        f"'winner={column}{{{key_shown(value)}:?,OTHER:?}}'"
    )


def _read_one_hot(values: list[object], names: tuple[str, ...]) -> int | None:
    numbers = [as_reward_or_none(value, name) or 0.0 for value, name in zip(values, names, strict=True)]
    if sorted(numbers) not in ([0.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        raise DataError(
            f"The columns {', '.join(names)} do not name one winner", got=str(numbers), expected="a single 1"
        )
    return None if numbers[0] == numbers[1] else int(numbers[1] > numbers[0])


def _check_scores(view: RowView, names: tuple[str, str], verdict: int | None) -> None:
    scores = [as_reward_or_none(view.row[name], name) for name in names]
    view.used |= dict.fromkeys(names, "checked: they must not contradict the verdict")
    if verdict is None or None in scores:
        return
    better, worse = scores[verdict], scores[1 - verdict]
    if better is not None and worse is not None and better < worse:
        raise DataError(
            f"The scores {names[0]} and {names[1]} contradict the verdict",
            got=f"{better:g} for the better answer and {worse:g} for the other",
            expected="a better answer that does not score lower",
            do=f"If the scores mean something else, use --rows.ignore {','.join(names)}",
        )


# --- the answers ---


def _texts(value: object) -> list[str | None] | None:
    """Several texts in a row, one for each turn of the user, as lists or as JSON text of a list."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list) and value and all(isinstance(item, str) or item is None for item in value):
        return value
    return None


def _interleaved(prompts: list[str | None], answers: list[str | None], name: str) -> tuple[Message, ...]:
    if len(prompts) != len(answers):
        raise DataError(
            f"The prompt and {name} have different numbers of turns",
            got=f"{len(prompts)} and {len(answers)}",
            expected="an answer to each turn of the user",
        )
    pairs = zip(prompts, answers, strict=True)
    return tuple(
        Message(role=role, content=as_text(text, f"{name}[{index}]"))
        for index, pair in enumerate(pairs)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    )


def _answers(view: RowView, names: tuple[str, str]) -> tuple[Prompt, list[Completion]]:
    """(prompt, the two answers)"""
    row = view.row
    role = {names[0]: "first answer", names[1]: "second answer"}
    view.used |= role
    values = [turns_of_text(row[name]) for name in names]
    if not has(row, *PROMPTS):
        if sides_are_refs(row) and isinstance(row.get("history"), str):
            view.used["history"] = "prompt"
            prompt: Prompt = str(row["history"])
            return prompt, [
                _one(view, value, name, prompt) for value, name in zip(values, names, strict=True)
            ]
        return _split(*(as_turns(value, name) for value, name in zip(values, names, strict=True)))
    asked = _texts(row[first_key(row, *PROMPTS)])
    replies = [_texts(value) for value in values]
    if asked and replies[0] and replies[1]:
        view.used[first_key(row, *PROMPTS)] = "prompt"
        both = [_interleaved(asked, reply or [], name) for reply, name in zip(replies, names, strict=True)]
        return _split(*both)
    prompt = read_prompt(view)
    before: tuple[Message, ...] = ()
    texts: list[Completion] = []
    for value, name in zip(values, names, strict=True):
        before, text = answer(value, name, prompt)
        prompt = agreed(prompt, before)
        texts.append(without_blank(text, prompt, view))
    return prompt, texts


def _one(view: RowView, value: object, name: str, prompt: Prompt) -> Completion:
    return without_blank(answer(value, name, prompt)[1], prompt, view)


def _split(
    first: tuple[Message, ...], second: tuple[Message, ...]
) -> tuple[tuple[Message, ...], list[Completion]]:
    if first == second:
        return first[:-1], [first[-1].content, second[-1].content]
    before, one, two = part(first, second)
    return before, [one, two]


def read_verdicts(view: RowView) -> Record | Drop:
    found = sides(view.row)
    if found is None:
        raise DataError(
            "The row has no two answers",
            got="the columns " + ", ".join(map(str, view.row)),
            expected="two columns such as response_a and response_b",
        )
    names, ends = found
    if not _verdict_names(view.row, ends) and not _one_hot(view.row, ends):
        scores = _scores(view.row, ends)
        if scores is None:
            raise DataError(
                "The row does not state which answer is better",
                got="no verdict",
                expected="a column such as winner",
            )
        prompt, texts = _answers(view, names)
        view.used |= dict.fromkeys(scores, "reward of an answer")
        return view.record(
            prompt, texts, rewards=tuple(as_reward_or_none(view.row[name], name) for name in scores)
        )
    verdict = _verdict(view, names, ends)
    prompt, texts = _answers(view, names)
    if verdict is None:
        return Drop(reason=TIE)
    return pair_record(view, prompt, texts[verdict], texts[1 - verdict])


def is_verdict(row: Mapping[str, object]) -> bool:
    found = sides(row)
    if found is None or not (
        has(row, *PROMPTS) or sides_are_refs(row) or isinstance(turns_of_text(row[found[0][0]]), list)
    ):
        return False
    ends = found[1]
    return bool(_verdict_names(row, ends) or _one_hot(row, ends) or _scores(row, ends))
