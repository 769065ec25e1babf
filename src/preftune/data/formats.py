"""The closed table of row formats: how each is recognized by its columns and converted to a Record."""

from collections.abc import Callable, Mapping, Sequence

from preftune.data import format_groups, format_index, format_labels, format_pairs, format_verdicts
from preftune.data.fields import Row
from preftune.data.row_view import EMPTY, EQUAL_PAIR, TIE, Drop, Format
from preftune.errors import DataError

__all__ = ["DETECTION_ROWS", "EMPTY", "EQUAL_PAIR", "FORMATS", "TIE", "Drop", "Format", "detect"]

DETECTION_ROWS = 20


def detect(rows: Sequence[Row], advise: Callable[[], str] | None = None) -> Format:
    """The first format of the table that fits at least half of the first rows: a few bad rows do not hide it.

    `advise` states what to do where no format fits.
    """
    rows = rows[:DETECTION_ROWS]
    for form in FORMATS.values():
        if rows and sum(form.matches(row) for row in rows) * 2 >= len(rows):
            return form
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    raise DataError(
        "No format fits these rows",
        got="the columns " + (", ".join(columns) or "none"),
        expected="columns such as prompt, chosen, rejected; or prompt, completion, label; or prompt, completions, "
        "rewards (all formats: docs/data.md)",
        do=advise() if advise and not _is_one_cell(columns) else _advice(columns),
    )


def _is_one_cell(columns: Sequence[str]) -> bool:
    return len(columns) == 1 and any(mark in columns[0] for mark in ";\t|")


def _advice(columns: Sequence[str]) -> str:
    if _is_one_cell(columns):
        return "Separate the cells of a CSV file with commas"
    return "Say which column is which, as in --rows.columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN"


def _only_by_name(row: Row) -> bool:
    """Of formats that only the user can recognize, because only the user knows what the list means."""
    return False


_IN_ORDER_OF_DETECTION = (
    Format(
        name="sharegpt",
        columns="conversations, chosen, rejected",
        matches=format_pairs.is_sharegpt,
        read=format_pairs.read_pairs,
    ),
    Format(
        name="pairs",
        columns="prompt, chosen, rejected; or messages that end with the chosen answer, rejected_response",
        matches=format_pairs.is_pair,
        read=format_pairs.read_pairs,
        companions=format_pairs.PAIR_COMPANIONS,
    ),
    Format(
        name="dialogues",
        columns="chosen, rejected with a shared beginning",
        matches=format_pairs.is_dialogues,
        read=format_pairs.read_dialogues,
        companions=format_pairs.PAIR_COMPANIONS,
    ),
    Format(
        name="verdicts",
        columns="prompt, response_a, response_b, winner; or a signed strength, or a score of each",
        matches=format_verdicts.is_verdict,
        read=format_verdicts.read_verdicts,
        companions=format_verdicts.VERDICT_COMPANIONS,
    ),
    Format(
        name="ultrafeedback",
        columns="instruction, completions of {response, overall_score}",
        matches=format_groups.is_ultrafeedback,
        read=format_groups.read_ultrafeedback,
        companions=frozenset(
            ("correct_answers", "incorrect_answers", "annotations", "fine-grained_score", "selected")
        ),
    ),
    Format(
        name="ranked",
        columns="prompt, completions, ranks; or completions of {completion, rank}",
        matches=format_groups.is_ranked,
        read=format_groups.read_ranked,
        companions=frozenset(("good_natured",)),
    ),
    Format(
        name="groups",
        columns="prompt, completions, pairs of their places; sources, probabilities, labels, rewards",
        matches=format_groups.is_group,
        read=format_groups.read_groups,
    ),
    Format(
        name="scored",
        columns="prompt, completions, rewards; or prompt, completion, reward",
        matches=format_groups.is_scored,
        read=format_groups.read_scored,
        companions=frozenset(("turn_rewards",)),  # of rollouts: `rewards` has their sums
    ),
    Format(
        name="indexed",
        columns="prompt, completions, best: the place of the best one, counted from 0; worst",
        matches=format_index.is_indexed,
        read=format_index.read_indexed,
        companions=frozenset(("models",)),
    ),
    Format(
        name="labels",
        columns="prompt, completion, label",
        matches=format_labels.is_labels,
        read=format_labels.read_labels,
    ),
    Format(
        name="messages_label",
        columns="messages, label",
        matches=format_labels.is_messages_label,
        read=format_labels.read_messages_label,
    ),
    Format(
        name="completions",
        columns="prompt, completion; or messages that end with the assistant",
        matches=format_labels.is_completion,
        read=format_labels.read_completion,
    ),
    Format(
        name="prompts",
        columns="prompt",
        matches=format_labels.is_prompt,
        read=format_labels.read_prompts_alone,
    ),
    Format(
        name="best_first",
        columns="prompt, a list of answers, best first",
        matches=_only_by_name,
        read=format_groups.read_best_first,
    ),
    Format(
        name="stepwise",
        columns="prompt, completions: the steps of one answer, labels of the steps",
        matches=_only_by_name,
        read=format_groups.read_stepwise,
    ),
)

FORMATS: Mapping[str, Format] = {form.name: form for form in _IN_ORDER_OF_DETECTION}
