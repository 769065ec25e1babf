"""A quicker engine for the tokens of many texts: fastokens, where it gives what the tokeniser's own engine gives.

It reads the same tokenizer.json. Whether it knows every part of it and does the same is not taken on trust: it must agree on
texts of every kind and on all pairs of them, and texts with other than long-settled characters are left to the tokeniser's own
engine, since libraries follow different versions of Unicode (`benchmarks/engines_agree.py` compares more).
"""

import re
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product

import fastokens
import numpy as np
from tokenizers import AddedToken, Tokenizer

KINDS = (  # texts, alone and in pairs, on which engines must agree
    "a", "Z", "the", " the", "don't", "'s", "'LL", "’s", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\xa0", "\u2003", "\u3000",
    "1", "12345", "½", "²", "é", "e\u0301", "ß", "İ", "日本", "かな", "한국", "Ω", "Жа", "😀", "!", "?!", "...", "…", "-", "_",
    "$", "+", "<", "|>", "#", "/", "\\", '"', "`", "{", ")", "、", "！", "▁", "Ġ", "antidisestablishmentarianism",
)  # fmt: skip
# Latin, Greek, Cyrillic, punctuation, currencies, letter-like characters, arrows, mathematics, kana, Chinese, Korean,
# full-width forms: what they are has not changed for ten years and more.
_SETTLED = re.compile(
    r"[\t\n\r\x20-\x7e\xa0-\u024f\u0370-\u052f\u2000-\u206f\u20a0-\u20bf\u2100-\u214f\u2190-\u22ff"
    r"\u3000-\u30ff\u4e00-\u9fef\uac00-\ud7a3\uff00-\uffef]*"
)


_MOST_UNUSUAL = 64
_MANY = 0.03  # texts for each entry of the vocabulary: where so many are asked for, there will be more


class QuickEngine:
    """The tokens of many texts by fastokens, which is loaded in another thread when it begins to be worth it. Thread-safe.

    Loading takes 5 to 12 microseconds for each entry of the vocabulary, a text by the tokeniser's own engine some 50. Nobody
    waits for it: as it gives the same tokens, it does not matter which texts it is asked for.
    """

    def __init__(self, usual: Tokenizer):
        self._usual, self._size, self._asked = usual, usual.get_vocab_size(), 0
        self._loading: Future[fastokens.Tokenizer | None] | None = None

    def ids(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The int32 tokens, no special token added, of those texts that it is trusted with; none while it is not loaded."""
        self._asked += len(texts)
        if self._loading is None and self._asked > _MANY * self._size:
            thread = ThreadPoolExecutor(max_workers=1)
            self._loading = thread.submit(agreeing, self._usual)
            thread.shutdown(wait=False)
        if self._loading is None or not self._loading.done():
            return {}
        engine = self._loading.result()
        return {} if engine is None else _ids(engine, texts)


def agreeing(usual: Tokenizer) -> fastokens.Tokenizer | None:
    """The same tokeniser by fastokens; None if it does not know a part of it, or does anything else than it."""
    usual.no_truncation()
    usual.no_padding()
    try:
        engine = fastokens.Tokenizer.from_json_str(usual.to_str())
    except Exception:  # a step of the user's own, written in Python, or one that fastokens has not got
        return None
    added = _telling(list(usual.get_added_tokens_decoder().values()))
    if added is None:
        return None
    texts = [a + b for a, b in product((*KINDS, *added), repeat=2)] + ["".join(KINDS), " ".join(KINDS)]
    found = _ids(engine, texts)
    expected = usual.encode_batch_fast(texts, add_special_tokens=False)
    agrees = all(found[text].tolist() == encoding.ids for text, encoding in zip(texts, expected, strict=True) if text in found)
    return engine if found and agrees else None


def _telling(tokens: Sequence[AddedToken]) -> list[str] | None:
    """Added tokens to try: some of the usual ones, which are alike, and each that takes white space, is found in normalised
    text, or as a whole word only; None if those are too many to try."""
    unusual = {token.content for token in tokens if token.lstrip or token.rstrip or token.single_word or token.normalized}
    usual = [token.content for token in tokens if token.content not in unusual]
    return None if len(unusual) > _MOST_UNUSUAL else [*usual[:8], *sorted(unusual)]


def trusted(text: str) -> bool:
    """Whether all characters of a text are long settled."""
    return text.isascii() or _SETTLED.fullmatch(text) is not None


def _ids(engine: fastokens.Tokenizer, texts: Collection[str]) -> dict[str, np.ndarray]:
    asked = [text for text in texts if trusted(text)]
    try:
        flat, ends = engine.encode_batch_flat(asked)
    except ValueError:  # a byte without a token, which the tokeniser's own engine passes over
        return {}
    tokens, places = np.frombuffer(flat, dtype="<u4").view("<i4"), np.frombuffer(ends, dtype="<u8").tolist()
    return {text: tokens[start:end] for text, start, end in zip(asked, places, places[1:], strict=False)}
