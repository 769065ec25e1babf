"""Completions that continue from a beginning: a share of an answer that the data give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from preftune.data.render import Renderer
from preftune.errors import DataError, check_range, refuse_idle, shown
from preftune.sampling.sampled import Sampled, completion_text
from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class PrefixOptions:
    """Completions that continue from the beginning of a given answer.

    Args:
        column: the column of the prompts that holds an answer to each; completions begin anew when empty.
        share: how much of the answer's tokens is given, in (0, 1].
        cut: "token" gives this share, rounded down to whole tokens; "step" goes back from there to the end of a
            line, since the steps of an answer are its lines.
    """

    column: str = ""
    share: float = 1.0
    cut: Literal["token", "step"] = "token"

    def __post_init__(self) -> None:
        check_range(self, "(0, 1]", "share", prefix="prefix.")
        if not self.column:
            refuse_idle(
                self,
                "without answers to begin with",
                "share",
                "cut",
                prefix="prefix.",
                expected="prefix.column",
                do="Add --prefix.column NAME or leave it out",
            )


def check_prefix(records: Sequence[Record], options: PrefixOptions) -> None:
    """An error unless the column holds an answer for every prompt."""
    if not options.column:
        return
    for record in records:
        value = record.columns.get(options.column)
        if not isinstance(value, str):
            others = ", ".join(map(str, record.columns))
            missing = (
                f"the columns {others}" if others else "no columns that are not part of the data's answers"
            )
            raise DataError(
                f"{record.origin}: the column {options.column} holds no answer to continue",
                got=missing if options.column not in record.columns else shown(value, 60),
                expected="text",
                do=("Name one of these columns with --prefix.column, or set" if others else "Set")
                + " --rows.format prompts if the column holds an answer of the data",
            )


def beginnings(
    renderer: Renderer, records: Sequence[Record], options: PrefixOptions
) -> list[np.ndarray] | None:
    """The tokens that each record's completions begin with, behind its prompt; None where nothing is given."""
    if not options.column:
        return None
    check_prefix(records, options)
    return [_beginning(renderer, record, options) for record in records]


def _beginning(renderer: Renderer, record: Record, options: PrefixOptions) -> np.ndarray:
    text = str(record.columns[options.column])
    if not text.strip():
        return np.zeros(0, dtype=np.int32)
    answered = Record(
        prompt=record.prompt,
        completions=(text,),
        ended=(False,),
        tools=record.tools,
        chat_template_kwargs=record.chat_template_kwargs,
        origin=record.origin,
    )
    ids = renderer.render(answered).completions[0]
    end = int(options.share * len(ids) + 1e-9)
    return ids[: end if options.cut == "token" else _line_end(ids, end, renderer)]


def _line_end(ids: np.ndarray, end: int, renderer: Renderer) -> int:
    """The most tokens, at most `end`, after which a line ends: the answer itself or its last line break, blank
    lines included.
    """
    if end == len(ids):
        return end
    whole = str(renderer.tokenizer.decode(ids.tolist()))
    for count in range(end, 0, -1):
        if "\n" not in str(renderer.tokenizer.decode([int(ids[count - 1])])):
            continue
        text = str(renderer.tokenizer.decode(ids[:count].tolist()))
        if text.endswith("\n") and whole[len(text) : len(text) + 1] != "\n":
            return count
    return 0


def behind(prompts: Sequence[np.ndarray], given: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """What completions continue: the prompts, each with the beginning that is given."""
    if given is None:
        return list(prompts)
    return [np.concatenate([prompt, ids]) for prompt, ids in zip(prompts, given, strict=True)]


def with_beginnings(
    drawn: Sequence[Sequence[Sampled]], given: Sequence[np.ndarray] | None, renderer: Renderer
) -> list[list[Sampled]]:
    """What was drawn, with the beginning in text and tokens; the beginning's tokens are not scored."""
    if given is None:
        return [list(ones) for ones in drawn]
    return [
        [_with_beginning(one, ids, renderer) if len(ids) else one for one in ones]
        for ones, ids in zip(drawn, given, strict=True)
    ]


def _with_beginning(one: Sampled, ids: np.ndarray, renderer: Renderer) -> Sampled:
    own = np.ones(len(one.token_ids), dtype=bool) if one.scored is None else one.scored
    whole = np.concatenate([ids, one.token_ids])
    return replace(
        one,
        token_ids=whole,
        text=completion_text(whole, renderer),
        scored=np.concatenate([np.zeros(len(ids), dtype=bool), own]),
    )
