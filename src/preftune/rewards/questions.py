"""Columns that a reward gets with sampled completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The arguments of a reward function: completions one after another, prompt by prompt."""

    prompts: list[str]
    completions: list[str]
    columns: Mapping[str, object]


def questions(
    records: Sequence[Record],
    texts: Sequence[Sequence[str]],
    ended: Sequence[Sequence[bool]],
    num_tokens: Sequence[Sequence[int]],
    budget: int,
    step: int | None = None,
    more: Mapping[str, Sequence[Sequence[object]]] | None = None,
) -> Questions:
    """Of the completions of each record's prompt: the columns that sampling gives, and those that all records
    have. `more` are columns with an entry for each completion of each prompt.
    """
    flat = [(p, k) for p, ones in enumerate(texts) for k in range(len(ones))]
    columns: dict[str, object] = {
        name: [records[p].columns[name] for p, _ in flat] for name in sorted(shared_columns(records))
    }
    columns |= template_columns([records[p] for p, _ in flat])
    columns |= {
        "ended": [ended[p][k] for p, k in flat],
        "num_tokens": [num_tokens[p][k] for p, k in flat],
        "budget": budget,
        "prompt_turns": [prompt_turns(records[p]) for p, _ in flat],
    }
    columns |= {name: [values[p][k] for p, k in flat] for name, values in (more or {}).items()}
    if step is not None:
        columns["training_step"] = step
    return Questions(
        prompts=[prompt_text(records[p]) for p, _ in flat],
        completions=[texts[p][k] for p, k in flat],
        columns=columns,
    )


def shared_columns(records: Sequence[Record]) -> set[str]:
    """Columns that every record has."""
    return set.intersection(*(set(record.columns) for record in records)) if records else set()


def template_columns(records: Sequence[Record]) -> dict[str, list[object]]:
    """The columns tools and chat_template_kwargs, where a record has them: one entry for each record."""
    known = [record.template_columns() for record in records]
    names = sorted(set().union(*known))
    return {name: [columns.get(name) for columns in known] for name in names}


def prompt_text(record: Record) -> str:
    """The last user turn's text, or the plain prompt."""
    return record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content


def prompt_turns(record: Record) -> list[dict[str, object]] | None:
    """The whole prompt, if it is a dialogue."""
    return None if isinstance(record.prompt, str) else [turn.as_dict() for turn in record.prompt]
