"""A rendered prompt as a person reads it: the texts of its turns without the marks of the chat template."""

from collections.abc import Sequence

import numpy as np

from preftune.data.render import Renderer

_ROLES = ("system", "developer", "user", "human", "assistant", "model", "tool")


def readable_prompt(ids: np.ndarray | Sequence[int], renderer: Renderer) -> str:
    """The text of the only turn, or `role: text` for each of several. A prompt without special tokens is its text."""
    tokens = renderer.tokenizer.added_tokens_decoder
    special = {number for number, token in tokens.items() if token.special}
    plain = [int(one) for one in ids]
    if not special.intersection(plain):
        return renderer.decode(plain)
    turns: list[tuple[str, str]] = []
    role = ""
    for text in (renderer.decode(part) for part in _between(plain, special)):
        first, _, rest = text.lstrip().partition("\n")
        if text.strip() in _ROLES:  # its text follows the next mark
            role = text.strip()
            continue
        if first.strip() in _ROLES:
            role, text = first.strip(), rest
        if text.strip():
            turns.append((role, text.strip()))
            role = ""
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{name}: {text}" if name else text for name, text in turns) or renderer.decode(plain)


def _between(ids: Sequence[int], special: set[int]) -> list[list[int]]:
    """Runs of tokens that are not special."""
    parts: list[list[int]] = [[]]
    for one in ids:
        if one in special:
            parts.append([])
        else:
            parts[-1].append(one)
    return [part for part in parts if part]
