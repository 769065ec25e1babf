"""Rows that hold a preferred and a dispreferred answer."""

from collections.abc import Mapping, Sequence

from preftune.data.dialogues import Prompt, agreed, answer, answer_turns, part, split_shared
from preftune.data.fields import (
    Row,
    as_probability,
    described,
    first_key,
    has,
    is_blank,
    not_blank,
    turns_of_text,
)
from preftune.data.pair_checks import check_pair
from preftune.data.prompts import DIALOGUE, PROMPTS, ends_with_answer, read_dialogue, read_prompt
from preftune.data.row_view import EMPTY, EQUAL_PAIR, Drop, RowView
from preftune.data.turn_shapes import ROLE_KEYS
from preftune.errors import DataError
from preftune.types import Completion, Record

CHOSEN = (
    "chosen",
    "chosen_response",
    "chosen_answer",
    "chosen_completion",
    "chosen_messages",
    "preferred_output",
    "preferred_response",
    "response_chosen",
    "answer_chosen",
    "output_chosen",
    "text_chosen",
)
REJECTED = (
    "rejected",
    "rejected_response",
    "rejected_answer",
    "rejected_completion",
    "rejected_messages",
    "non_preferred_output",
    "dispreferred_response",
    "response_rejected",
    "answer_rejected",
    "output_rejected",
    "text_rejected",
)
ANSWER = ("completion", "response", "output")
JUDGED = (
    *ANSWER,
    "answer",
)  # next to a label, a reward or a rejected answer; elsewhere an answer may be a solution
PAIR_COMPANIONS = frozenset(
    (
        *(
            "original_chosen",
            "original_rejected",
        ),  # of distilabel, before it exchanged sides by their ratings
        *("num_correct", "num_incorrect"),  # of RewardBench 2
        *("chosen_score", "score_chosen", "chosen_rating", "rating_chosen", "chosen_reward", "chosen_rank"),
    )
)  # a score of one side alone contradicts nothing; of both sides it is checked
_PROBABILITY = ("probability", "chosen_prob", "chosen_probs")


def from_transcript(prompt: Prompt, view: RowView) -> bool:
    """Whether the prompt came as a transcript, whose answers begin with a blank that is no part of them."""
    return not isinstance(prompt, str) and any(
        role == "prompt" and isinstance(view.row.get(name), str) and "Human:" in str(view.row[name])
        for name, role in view.used.items()
    )


def without_blank(completion: Completion, prompt: Prompt, view: RowView) -> Completion:
    """The answer without the blank that a transcript puts before it."""
    if isinstance(completion, str) and completion[:1].isspace() and from_transcript(prompt, view):
        return completion.lstrip()
    return completion


def pair_record(view: RowView, prompt: Prompt, chosen: Completion, rejected: Completion) -> Record | Drop:
    """The record of one pair, with its probability if the row has one."""
    check_pair(view)
    if chosen == rejected:
        return Drop(reason=EQUAL_PAIR)
    key, value = view.get("probability that chosen is better", *_PROBABILITY)
    probabilities = () if value in (None, "") else (as_probability(value, key),)  # a table has empty cells
    return view.record(prompt, (chosen, rejected), pairs=((0, 1),), probabilities=probabilities)


def _texts(value: object) -> list | None:
    """Several answers; None for one answer, which may be a list of turns."""
    value = turns_of_text(value)
    if not isinstance(value, list) or not value:
        return None
    if type(value[0]) is dict or isinstance(value[0], Mapping):
        return None
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and item for item in value):
        return value if all(isinstance(turn, Mapping) for item in value for turn in item) else None
    return None


def read_pairs(view: RowView) -> Record | Drop:
    row = view.row
    own = has(row, "prompt", *CHOSEN) or not ends_with_answer(row)
    if row.get("prompt") in ("", []) and isinstance(turns_of_text(row.get("chosen")), list):
        return read_dialogues(view)  # a prompt column that is empty, next to whole dialogues
    if not own:  # the chosen answer ends the messages
        chosen_key = first_key(row, *DIALOGUE)
        prompt, chosen = read_dialogue(view)
        before, many = (), None
    else:
        prompt = read_prompt(view)
        chosen_key, value = view.take("chosen completion", *CHOSEN, *JUDGED)
        many = _texts(value)
        if many and chosen_key in JUDGED:
            raise several_answers(chosen_key, value)
        before, chosen = ((), "") if many else _answer(value, chosen_key, prompt, view)
    rejected_key, value = view.take("rejected completion", *REJECTED)
    several = _texts(value)
    if many or several:
        return _several(view, prompt, before, many or [chosen], several or [value])
    rejected_before, rejected = _answer(value, rejected_key, prompt, view)
    if before and rejected_before:
        before, chosen, rejected = part(
            (*before, *answer_turns(chosen)), (*rejected_before, *answer_turns(rejected))
        )
        chosen, rejected = not_blank(chosen, chosen_key), not_blank(rejected, rejected_key)
    prompt = agreed(prompt, before or rejected_before)
    return pair_record(view, prompt, chosen, rejected)


def several_answers(name: str, value: object) -> DataError:
    return DataError(
        f"The field {name} holds several answers, and nothing says which is better",
        got=described(value),
        expected="one answer, or several with rewards, ranks or labels",
        do="If the best answer comes first, use --rows.format best_first",
    )


def _answer(value: object, name: str, prompt: Prompt, view: RowView):
    if (
        type(value) is not list
        and isinstance(value, Mapping)
        and not {*ROLE_KEYS, "content", "value"} & value.keys()
    ):
        texts = [key for key, item in value.items() if isinstance(item, str)]
        raise DataError(
            f"The field {name} is an object that is no turn",
            got=described(value),
            expected="text, a turn {role, content}, or a list of turns",
            do=f"Name the text in it, as in --rows.columns {_texts_named((texts or ['text'])[0], view)}",
        )
    before, completion = answer(value, name, prompt)
    return before, without_blank(completion, prompt, view)


def _texts_named(text: str, view: RowView) -> str:
    """The flag for the text in both sides, which are objects."""
    names = (("chosen", first_key(view.row, *CHOSEN, *JUDGED)), ("rejected", first_key(view.row, *REJECTED)))
    return ",".join(
        f"{ours}={name}.{text}" for ours, name in names if isinstance(view.row.get(name), Mapping)
    )


def _several(
    view: RowView, prompt: Prompt, before: tuple, chosen: Sequence[object], rejected: Sequence[object]
) -> Record | Drop:
    """Each chosen answer against each rejected one."""
    check_pair(view)
    sides: list[list[Completion]] = []
    prompt = agreed(prompt, before)
    for name, values in (("chosen", chosen), ("rejected", rejected)):
        texts = []
        for index, value in enumerate(values):
            before, text = _answer(value, f"{name}[{index}]", prompt, view)
            prompt = agreed(prompt, before)
            texts.append(text)
        sides.append(list(dict.fromkeys(texts)))
    both = set(sides[0]) & set(sides[1])
    good, bad = ([text for text in side if text not in both] for side in sides)
    if not good or not bad:
        return Drop(reason=EQUAL_PAIR)
    pairs = tuple((i, len(good) + j) for i in range(len(good)) for j in range(len(bad)))
    return view.record(prompt, (*good, *bad), pairs=pairs)


def read_dialogues(view: RowView) -> Record | Drop:
    if "prompt" in view.row:
        view.used["prompt"] = "empty"
    _, first = view.take("prompt and chosen completion", *CHOSEN)
    _, second = view.take("prompt and rejected completion", *REJECTED)
    for name, value in (("chosen", first), ("rejected", second)):
        if _texts(value):
            raise DataError(
                f"The field {name} holds several answers, and the row has no prompt",
                got=described(value),
                expected="a prompt, with one or several answers in chosen and rejected",
                do="Add a column prompt",
            )
    prompt, chosen, rejected = split_shared(first, second)
    if is_blank(chosen) or is_blank(rejected):  # in a transcript, the speaker's name with nothing behind it
        return Drop(reason=EMPTY)
    return pair_record(view, prompt, chosen, rejected)


def is_pair(row: Row) -> bool:
    if not has(row, *REJECTED) or isinstance(row.get(first_key(row, *REJECTED)), (bool, int, float)):
        return False
    if has(row, *CHOSEN):
        return has(row, *PROMPTS)
    return ends_with_answer(row) or (has(row, *PROMPTS) and has(row, *JUDGED))


def is_dialogues(row: Row) -> bool:
    """Numbers are places in a list of answers."""
    sides = (row.get(first_key(row, *CHOSEN)), row.get(first_key(row, *REJECTED)))
    return not any(side is None or isinstance(side, (bool, int, float)) for side in sides)


def is_sharegpt(row: Row) -> bool:
    return (
        has(row, "conversations") and has(row, "chosen") and has(row, "rejected") and not has(row, "prompt")
    )
