"""A quicker engine for the tokens of many texts: fastokens, where it gives what the tokenizer's own engine
gives.

It reads the same tokenizer.json. Whether it knows every part of it and does the same is not taken on trust:
it must agree on texts of every kind and on all pairs of them, and texts with other than long-settled
characters are left to the tokenizer's own engine, since libraries follow different versions of Unicode
(`benchmarks/engines_agree.py` compares more). Without the library (`pip install 'preftune[fast]'`) that engine does
all the work.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, product
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

try:
    import fastokens
except ImportError:
    fastokens = None

PROBE_TEXTS = (  # texts, alone and in pairs, on which engines must agree
    "a",
    "Z",
    "the",
    " the",
    "don't",
    "'s",
    "'LL",
    "’s",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\xa0",
    "\u2003",
    "\u3000",
    "1",
    "12345",
    "½",
    "²",
    "é",
    "e\u0301",
    "ß",
    "İ",
    "日本",
    "かな",
    "한국",
    "Ω",
    "Жа",
    "😀",
    "!",
    "?!",
    "...",
    "…",
    "-",
    "_",
    "$",
    "+",
    "<",
    "|>",
    "#",
    "/",
    "\\",
    '"',
    "`",
    "{",
    ")",
    "、",
    "！",
    "▁",
    "Ġ",
    "antidisestablishmentarianism",
)
# Latin, Greek, Cyrillic, punctuation, currencies, letter-like characters, arrows, mathematics, kana, Chinese,
# Korean, full-width forms: what they are has not changed for ten years and more.
_SETTLED = re.compile(
    r"[\t\n\r\x20-\x7e\xa0-\u024f\u0370-\u052f\u2000-\u206f\u20a0-\u20bf\u2100-\u214f\u2190-\u22ff"
    r"\u3000-\u30ff\u4e00-\u9fef\uac00-\ud7a3\uff00-\uffef]*"
)


_MOST_UNUSUAL = 100  # added tokens, of which all pairs are tried
_MOST_OVERLAPS = 10_000  # of added tokens, all of which are tried
_MANY = 0.03  # texts for each entry of the vocabulary: a request for this many is followed by more


class QuickEngine:
    """The tokens of many texts by fastokens, which is loaded in another thread when it begins to be worth it.
    Thread-safe.

    Loading takes 5 to 12 microseconds for each entry of the vocabulary, a text by the tokenizer's own engine
    some 50. Nobody waits for it: as it gives the same tokens, it does not matter which texts it is asked for.
    """

    def __init__(self, usual: Tokenizer):
        self._usual, self._size, self._asked = usual, usual.get_vocab_size(), 0
        self._loading: Future[Any] | None = None  # of a fastokens.Tokenizer, or None

    def ids(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The int32 tokens, no special token added, of those texts that it is trusted with; none while it is
        not loaded.
        """
        self._asked += len(texts)
        if self._loading is None and self._asked > _MANY * self._size:
            thread = ThreadPoolExecutor(max_workers=1)
            self._loading = thread.submit(agreeing, self._usual)
            thread.shutdown(wait=False)
        if self._loading is None or not self._loading.done():
            return {}
        engine = self._loading.result()
        return {} if engine is None else _ids(engine, texts)


def agreeing(usual: Tokenizer) -> Any:
    """The same tokenizer of fastokens; None if it does not know a part of it, or gives anything else."""
    if fastokens is None:
        return None
    usual.no_truncation()
    usual.no_padding()
    try:
        engine = fastokens.Tokenizer.from_json_str(usual.to_str())
    except Exception:  # a step of the user's own, written in Python, or one that fastokens has not got
        return None
    added = list(usual.get_added_tokens_decoder().values())
    unusual = _unusual(added)
    overlaps = list(islice(_overlaps([token.content for token in added]), _MOST_OVERLAPS + 1))
    if len(unusual) > _MOST_UNUSUAL or len(overlaps) > _MOST_OVERLAPS:
        return None
    few = [*unusual, *(token.content for token in added[:8] if token.content not in unusual)]
    texts = [a + b for a, b in product((*PROBE_TEXTS, *few), repeat=2)] + [
        "".join(PROBE_TEXTS),
        " ".join(PROBE_TEXTS),
    ]
    texts += [
        around.format(text)
        for text in (*(token.content for token in added), *overlaps)
        for around in ("{}", "a{}a")
    ]
    try:
        found = _ids(engine, texts)
        expected = usual.encode_batch_fast(texts, add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ):  # a library's own panic, which is no Exception: added tokens that want the same white space
        return None
    agrees = all(
        found[text].tolist() == encoding.ids
        for text, encoding in zip(texts, expected, strict=True)
        if text in found
    )
    return engine if found and agrees else None


def _unusual(tokens: Sequence[AddedToken]) -> list[str]:
    """Added tokens that others may treat otherwise: those that take white space, begin or end with some, are
    whole words only, or are found after the normalizer where most are found before it, or before it where
    most are found after.
    """
    rarer = 2 * sum(token.normalized for token in tokens) <= len(tokens)
    return [
        token.content
        for token in tokens
        if token.lstrip
        or token.rstrip
        or token.single_word
        or token.normalized == rarer
        or token.content != token.content.strip()
    ]


def _overlaps(tokens: Sequence[str]) -> Iterator[str]:
    """Two added tokens, of which the first ends as the second begins, written over each other: only one of
    them can be found.
    """
    beginning: defaultdict[str, list[str]] = defaultdict(list)
    for token in tokens:
        for length in range(1, len(token)):
            beginning[token[:length]].append(token[length:])
    for token in tokens:
        for place in range(1, len(token)):
            yield from (token + rest for rest in beginning.get(token[place:], ()))


def trusted(text: str) -> bool:
    """Whether all characters of a text are long settled."""
    return text.isascii() or _SETTLED.fullmatch(text) is not None


def _ids(engine: Any, texts: Collection[str]) -> dict[str, np.ndarray]:
    asked = [text for text in texts if trusted(text)]
    try:
        flat, ends = engine.encode_batch_flat(asked)
    except ValueError:  # a byte without a token, which the tokenizer's own engine passes over
        return {}
    tokens, places = np.frombuffer(flat, dtype="<u4").view("<i4"), np.frombuffer(ends, dtype="<u8").tolist()
    return {text: tokens[start:end] for text, start, end in zip(asked, places, places[1:], strict=False)}
