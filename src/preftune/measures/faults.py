"""What a template or a bad export leaves in texts: markers, special tokens, broken characters, ends that are
missing. Pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONG_ENOUGH = 20  # words: a shorter answer may well be a name or a number, and end without a stop

FAULTS = {
    "special_tokens": "special tokens of a template in the text",
    "role_markers": "another speaker's marker inside a completion",
    "double_bos": "the text begins with a BOS token, and the tokenizer or template adds another",
    "no_end": "a long completion without an end",
    "cut_off": "a completion marked as truncated in its row",
    "control_characters": "invisible control characters",
    "mojibake": "characters decoded with the wrong encoding",
}

_SPECIAL = re.compile(r"<\|[A-Za-z][\w ]{0,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")
_ROLE = re.compile(
    r"(?m)^[ \t]*(?:(?:Human|User|Assistant|AI|System|Bot)[ \t]*:|#{2,4}[ \t]*(?:Instruction|Response|Input|Human|User|Assistant)\b"
    r"|<\|im_start\|>|\[INST\]|<start_of_turn>|<\|start_header_id\|>)"
)
_BOS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MOJIBAKE = re.compile("[ÃÂ][\x80-\xbf]|â[\x80€]|ï»¿|\ufffd")
_OPEN_END = re.compile(r"[^\W\d_]$|[,(\[{]$")  # a letter, a comma or an open bracket


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Rows with a fault, and the first of them as file:row."""

    rows: int
    share: float
    example: str


def faults_of(
    prompt: Sequence[str],
    completions: Sequence[str],
    ended: Sequence[bool] = (),
    *,
    special: Sequence[str] = (),
    bos: str | None = None,
) -> frozenset[str]:
    """The FAULTS of one row.

    Args:
        prompt: the text of each turn.
        completions: the text of each completion; of a trajectory, of each of the assistant's turns.
        ended: whether each completion came to its end; empty where the row does not state it.
        special: the tokenizer's special tokens, in addition to those of the usual templates.
        bos: the tokenizer's BOS token.
    """
    texts = [*prompt, *completions]
    starts = (*_BOS, bos) if bos else _BOS
    known = {
        "special_tokens": any(
            _SPECIAL.search(text) or any(token in text for token in special) for text in texts
        ),
        "role_markers": any(_ROLE.search(text) for text in completions),
        "double_bos": any(text.lstrip().startswith(starts) for text in prompt[:1]),
        "no_end": not ended and any(map(_stops_short, completions)),
        "cut_off": not all(ended),
        "control_characters": any(_CONTROLS.search(text) for text in texts),
        "mojibake": any(_MOJIBAKE.search(text) for text in texts),
    }
    return frozenset(name for name, there in known.items() if there)


def _stops_short(text: str) -> bool:
    return len(text.split()) >= LONG_ENOUGH and bool(_OPEN_END.search(text.rstrip()))


def count_faults(rows: Sequence[tuple[str, frozenset[str]]]) -> dict[str, Fault]:
    """Faults that are there, of rows (file:row, faults), in the order of FAULTS."""
    found = {name: [origin for origin, faults in rows if name in faults] for name in FAULTS}
    return {
        name: Fault(rows=len(origins), share=len(origins) / len(rows), example=origins[0])
        for name, origins in found.items()
        if origins
    }
