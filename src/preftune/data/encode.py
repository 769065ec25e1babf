"""Texts to token ids in large batches, and where a text can be cut so that its parts have the tokens of the
whole.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.data.fast_tokens import QuickEngine
from preftune.errors import DataError, shown

_PROBES = ("a b", " a", "\n\nb ", "  \n", "é 语!", "'s 12", "")  # of every kind that might reach over a cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The tokens of texts, no special token added. Make it with `make_encoder`."""

    tokenizer: PreTrainedTokenizerBase
    engine: (
        Tokenizer | None
    )  # of the tokenizer, where it can be called itself: that saves what the tokenizer returns in addition to the ids
    # special tokens that split a text in two: the tokens of both parts are those of the whole
    cuts: tuple[str, ...]
    quick: QuickEngine | None = None  # called before the other

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 tokens of each text; equal texts are tokenized once."""
        unique = list(dict.fromkeys(texts))
        found = {} if self.quick is None else self.quick.ids(unique)
        rest = [text for text in unique if text not in found] if found else unique
        if rest:
            found |= {
                text: np.array(ids, dtype=np.int32) for text, ids in zip(rest, self._usual(rest), strict=True)
            }
        return [found[text] for text in texts]

    def _usual(self, texts: list[str]) -> list[list[int]]:
        if self.engine is None:
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]  # verbose warns of long texts
        self.engine.no_truncation()  # as the tokenizer itself does before each call
        self.engine.no_padding()
        self.engine.encode_special_tokens = self.tokenizer.split_special_tokens
        try:
            return [item.ids for item in self.engine.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:
            wrong = [text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)]
            raise DataError(
                "A text has no tokens",
                got=f"half of a surrogate pair in {shown(wrong[0])}" if wrong else str(error),
                expected="text that UTF-8 can hold",
            ) from error

    def last_cut(self, text: str) -> int:
        """The place behind the last token of `cuts` in a text; 0 if there is none."""
        return max((place + len(cut) for cut in self.cuts if (place := text.rfind(cut)) >= 0), default=0)


def make_encoder(tokenizer: PreTrainedTokenizerBase, sample: str, many: bool) -> Encoder:
    """The encoder of a tokenizer, which cuts texts at special tokens of `sample`, or nowhere where that is
    not known to be safe.

    For many texts it uses a faster engine, which takes as much memory as the tokenizer again.
    """
    usual = PreTrainedTokenizerFast._encode_plus
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or type(tokenizer)._encode_plus is not usual:
        return Encoder(tokenizer=tokenizer, engine=None, cuts=())
    engine = tokenizer.backend_tokenizer
    quick = QuickEngine(engine) if many and not tokenizer.split_special_tokens else None
    encoder = Encoder(tokenizer=tokenizer, engine=engine, cuts=(), quick=quick)
    return replace(
        encoder, cuts=tuple(cut for cut in _solid_tokens(tokenizer, sample) if _proven(encoder, cut))
    )


def _solid_tokens(tokenizer: PreTrainedTokenizerFast, sample: str) -> list[str]:
    """Special tokens of a text that are found before anything else is done with a text, wherever they are.

    An engine splits a text at such tokens first, and works on what is between them piece by piece. So the
    pieces do not know of each other, unless a piece is treated in another way for being the first, or another
    added token could be found across a cut.
    """
    if tokenizer.split_special_tokens or _knows_the_first(tokenizer):
        return []
    added = list(tokenizer.added_tokens_decoder.values())
    solid = [
        token.content
        for token in added
        if token.special
        and token.content
        and token.content in sample
        and not (token.normalized or token.rstrip or token.single_word)
    ]
    return [content for content in solid if not any(_reaches_into(other.content, content) for other in added)]


def _knows_the_first(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the engine treats the beginning of a text otherwise than what follows a special token."""
    step = tokenizer.backend_tokenizer.pre_tokenizer
    if step is None:
        return False
    try:
        state = json.loads(step.__getstate__())
    except Exception:  # a step that the user wrote in Python does not state it
        return True
    return '"prepend_scheme": "first"' in json.dumps(state)


def _reaches_into(other: str, token: str) -> bool:
    """Whether a match of the other token could take a part of this one away."""
    if other != token and token in other:
        return True
    return any(other.endswith(token[:k]) for k in range(1, len(token)))


def _proven(encoder: Encoder, cut: str) -> bool:
    """Whether texts of every kind on both sides of a token give the tokens that they give alone."""
    pairs = [(left + cut, right) for left in _PROBES for right in _PROBES]
    whole = encoder.ids([left + right for left, right in pairs])
    lefts, rights = (encoder.ids([pair[side] for pair in pairs]) for side in (0, 1))
    return all([*a, *b] == [*both] for a, b, both in zip(lefts, rights, whole, strict=True))
