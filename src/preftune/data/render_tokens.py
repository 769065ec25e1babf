"""The tokens of a record's texts: where the prompt ends and the completions begin is proven for every completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from preftune.data.encode import Encoder
from preftune.data.render_texts import Texts
from preftune.errors import DataError, shown
from preftune.types import SOURCES, Group, Record

_TAIL = 12  # tokens shown on either side in an error about the boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """How texts become tokens."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    start: tuple[int, ...]  # token ids before the text of a plain prompt; none in chat mode
    bos: int | None
    end: int  # token that is added to completions without an end
    rows: int | None  # token ids that the model knows, where the tokenizer has more

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids, special tokens included."""
        plain = list(map(int, ids))
        return str(
            self.tokenizer.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def automatic_start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before any text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    place = next(k for k in range(len(ids)) if ids[k : k + len(plain)] == plain)
    return tuple(ids[:place])


def joins_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer joins a blank to the word that follows and puts one before any text, as SentencePiece
    does: there is no boundary behind a blank then.
    """
    ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    return any(str(token).startswith("▁") for token in tokenizer.convert_ids_to_tokens(ids))


def tokenized_group(rules: TokenRules, record: Record, texts: Texts, tokens: list[np.ndarray]) -> Group:
    """The record as token ids; `tokens` are those of `texts.flat`."""
    head, prompt, place = tokens[0], tokens[1], 2
    several = any([len(stages) > 1 for stages in texts.completions])
    completions, scored = [], []
    for k, stages in enumerate(texts.completions):
        own, place = tokens[place : place + len(stages)], place + len(stages)
        pieces = _pieces(rules, record, head, (texts.prompt, *stages), [prompt, *own])
        if texts.needs_end[k] and pieces[-1][-1] != rules.end:
            pieces[-1] = np.append(pieces[-1], np.int32(rules.end))
        completions.append(pieces[0].copy() if len(pieces) == 1 else np.concatenate(pieces))
        if several:
            flags = texts.scored[k] or np.arange(len(pieces)) % 2 == 0
            scored.append(np.repeat(np.asarray(flags), [len(piece) for piece in pieces]))
    group = Group(
        prompt=_started(rules, record, head, prompt),
        completions=tuple(completions),
        scored=tuple(scored),
        pairs=record.pairs,
        probabilities=record.probabilities,
        labels=record.labels,
        rewards=record.rewards,
        sources=tuple(map(SOURCES.index, record.sources)) if record.sources else (),
        origin=record.origin,
    )
    if rules.rows is not None:
        _refuse_unknown(rules, rules.rows, group)
    return group


def _refuse_unknown(rules: TokenRules, rows: int, group: Group) -> None:
    """An error for tokens that the model has no embedding of."""
    for ids in (group.prompt, *group.completions):
        unknown = ids[ids >= rows]
        if len(unknown):
            raise DataError(
                f"{group.origin}: the model has no embedding of a token",
                got=f"token {int(unknown[0])} ({shown(rules.decode(unknown[:1]))})",
                expected=f"tokens below {rows}, the rows of the model's embedding; the tokenizer has "
                f"{len(rules.tokenizer)} tokens",
                do="Use the model's own tokenizer, resize the model's embedding, or remove the token from the data",
            )


def _pieces(
    rules: TokenRules, record: Record, head: np.ndarray, texts: Sequence[str], tokens: list[np.ndarray]
) -> list[np.ndarray]:
    """The tokens that each text adds to the one before it; `tokens` are those of each text, which all follow
    the head's.

    When a token of the last text reaches over the end of another, they are the tokens of each added text of
    its own. That is proven by decoding: all together must read as the last text does.
    """
    if len(tokens) == 2:  # one answer after a prompt, the usual case
        before, whole = tokens
        size = len(before)
        if size < len(whole) and whole[:size].tobytes() == before.tobytes():
            return [whole[size:]]
    whole, astray, pieces = tokens[-1], [], []
    all_bytes = whole.tobytes()
    for shorter, longer in pairwise(tokens):
        if not all_bytes.startswith(shorter.tobytes()):
            astray.append(shorter)
        elif len(shorter) < len(longer):
            pieces.append(whole[len(shorter) : len(longer)])
    if len(pieces) == len(tokens) - 1:
        return pieces
    pieces = rules.encoder.ids([text[len(before) :] for before, text in pairwise(texts)])
    read = rules.decode(np.concatenate([head, whole]))
    if all(map(len, pieces)) and rules.decode(np.concatenate([head, tokens[0], *pieces])) == read:
        return pieces
    whole, first = (
        np.concatenate([head, ids]).tolist() for ids in (whole, astray[0] if astray else tokens[0])
    )
    split = _first_difference(first, whole)
    tails = [shown(rules.decode(ids[max(0, split - _TAIL) : split + _TAIL])) for ids in (first, whole)]
    part = (
        "the prompt's tokens"
        if not astray or astray[0] is tokens[0]
        else "the tokens of a trajectory's earlier turns"
    )
    raise DataError(
        f"{record.origin}: {part} are not the first tokens of prompt and completion together",
        got=f"{tails[0]} against {tails[1]}",
        expected="a boundary between tokens",
        do="Use another template, or end the prompt with a line break or without a blank",
    )


def _started(rules: TokenRules, record: Record, head: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The prompt's tokens with BOS where it belongs: once, or before an empty prompt."""
    prompt = np.concatenate([head, rest]) if len(head) else rest.copy()
    if rules.start:
        prompt = np.concatenate([np.array(rules.start, dtype=np.int32), prompt])
    while rules.bos is not None and len(prompt) > 1 and prompt[0] == prompt[1] == rules.bos:
        prompt = prompt[1:]
    if not len(prompt) and rules.bos is not None:
        prompt = np.array([rules.bos], dtype=np.int32)
    if not len(prompt):
        raise DataError(
            f"{record.origin}: the prompt is empty and the tokenizer has no BOS token",
            got="no tokens",
            expected="at least one token before the completion",
        )
    return prompt


def _first_difference(left: Sequence, right: Sequence) -> int:
    differences = (k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(differences, min(len(left), len(right)))
