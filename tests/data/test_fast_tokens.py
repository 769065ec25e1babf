"""The quick engine gives the tokens of the tokenizer's own, or nothing."""

import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from preftune.data import fast_tokens as quick
from preftune.data.encode import make_encoder
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.render import make_renderer
from preftune.types import Record
from tests.data import tokenizers_for_tests as made

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    *made.CORPUS,
    "It's 2024, isn't it? 12345 ½ é ß 日本語 Жизнь 한국어 ... !!",
    "a  b\n\n\nc\t\td   \n",
] * 4
WITHOUT = """
import hashlib, sys
sys.modules[sys.argv[1]] = None
from transformers import AutoTokenizer
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
groups = prepare(sys.argv[2], AutoTokenizer.from_pretrained(sys.argv[3]), "pairs", DataOptions()).groups
ids = [ids for group in groups for ids in (group.prompt, *group.completions)]
print(hashlib.sha256(b"|".join(one.tobytes() for one in ids)).hexdigest())
"""
STEPS = {
    "bytes": (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "digits": (
        None,
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "gpt4": (
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT4), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
    "nfc": (
        normalizers.NFC(),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT4), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
}
ADDED = (AddedToken(" new", normalized=True), AddedToken("x", lstrip=True, rstrip=True, normalized=False))
PIECES = [
    "a",
    "the",
    " the",
    "It's",
    "'LL",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "1",
    "12345",
    "½",
    "²",
    "é",
    "e\u0301",
    "\xa0",
    "日本",
    "语",
    "Жи",
    "한",
    "Ω",
    "…",
    "!",
    "?!",
    "<s>",
    "<|im_end|>",
    "<|im_",
    "x",
    "\u3000",
    "\u2003",
    "😀",
    "\x00",
    "ﬁ",
    " new",
    "new ",
]


@cache
def engine(name: str) -> Tokenizer:
    normalizer, before = STEPS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = before, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=made.SPECIALS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([ADDED[list(STEPS).index(name) % 2]])
    return tokenizer


@cache
def quickly(name: str):
    found = quick.agreeing(engine(name))
    assert found is not None
    return found


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12))
def test_the_tokens_are_those_of_the_own_engine(name, parts):
    text = "".join(parts).encode("utf-8", "ignore").decode()
    for given_text, ids in quick._ids(quickly(name), [text]).items():
        assert ids.tolist() == engine(name).encode(given_text, add_special_tokens=False).ids
        assert ids.dtype == np.int32


def test_added_tokens_that_want_the_same_white_space_are_left_to_the_own_engine():
    """The one takes the blanks around it first, in the library of the tokenizer alone; however many others
    were added before.
    """
    tokenizer = Tokenizer.from_str(engine("bytes").to_str())
    tokenizer.add_special_tokens([f"<|{number}|>" for number in range(300)])
    assert quick.agreeing(tokenizer) is not None
    tokenizer.add_tokens([ADDED[1]])
    assert tokenizer.encode("x new").tokens[0] == "x "
    assert quick.agreeing(tokenizer) is None


def test_a_tokenizer_that_fails_on_a_probe_is_left_alone():
    """Its library panics where a token takes blanks of which another is made; that is no exception of
    Python's usual kind.
    """
    tokenizer = Tokenizer.from_str(engine("bytes").to_str())
    tokenizer.add_tokens([ADDED[1], AddedToken(" ", lstrip=True, normalized=False)])
    with pytest.raises(BaseException, match="bad split") as told:
        tokenizer.encode("x  ")
    assert not isinstance(told.value, Exception)
    assert quick.agreeing(tokenizer) is None


@pytest.mark.parametrize(
    ("word", "text", "tokens"),
    [("&<", "&<|20|>", ["&", "<|20|>"]), ("&<|20|>)", "&<|20|>)", ["&", "<|20|>", ")"])],
)
def test_added_tokens_that_overlap_are_left_to_the_own_engine(word, text, tokens):
    """Those found before the normalizer go first in the library of the tokenizer alone; wherever they come in
    the vocabulary.
    """
    tokenizer = Tokenizer.from_str(engine("bytes").to_str())
    tokenizer.add_special_tokens([f"<|{number}|>" for number in range(30)])
    tokenizer.add_tokens([AddedToken(f"[{number}]", normalized=True) for number in range(300)])
    assert quick.agreeing(tokenizer) is not None
    tokenizer.add_tokens([AddedToken(word, normalized=True)])
    assert tokenizer.encode(text).tokens == tokens
    assert quick.agreeing(tokenizer) is None


def test_the_overlaps_of_added_tokens():
    assert sorted(quick._overlaps(["<ab", "b<", "x"])) == ["<ab<", "b<ab"]
    assert sorted(quick._overlaps(["aba", "ab"])) == ["abab", "ababa"]


def test_more_unusual_added_tokens_than_can_be_tried_are_left_to_the_own_engine():
    tokenizer = Tokenizer.from_str(engine("bytes").to_str())
    tokenizer.add_special_tokens([f"<|{number}|>" for number in range(300)])
    tokenizer.add_tokens([AddedToken(f"word{number}", single_word=True) for number in range(99)])
    assert quick.agreeing(tokenizer) is not None
    tokenizer.add_tokens([AddedToken("another", single_word=True)])
    assert quick.agreeing(tokenizer) is None


def test_many_added_tokens_of_one_kind_are_nothing_unusual():
    tokens = [AddedToken(f"<{number}>", normalized=True) for number in range(500)]
    assert quick._unusual(tokens) == []
    assert quick._unusual([*tokens, AddedToken("<s>", normalized=False)]) == ["<s>"]
    assert quick._unusual([AddedToken("\n\n", normalized=False), AddedToken("<s>", normalized=False)]) == [
        "\n\n"
    ]


def test_characters_that_libraries_may_take_for_something_else_are_left_out():
    texts = ["plain", "naïve — “quoted” 日本語", "smile 😀", "हिन्दी", "e\u0301", ""]
    assert set(quick._ids(quickly("bytes"), texts)) == {"plain", "naïve — “quoted” 日本語", ""}


def test_a_byte_without_a_token_is_left_to_the_own_engine():
    letters = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert letters.encode("abc").ids == [2]
    found = quick.fastokens.Tokenizer.from_json_str(letters.to_str())
    assert quick._ids(found, ["ab", "abc"]) == {}
    assert quick._ids(found, ["ab"])["ab"].tolist() == [2]


def whispering() -> Tokenizer:
    """An engine that is told from another only by what it does: it leaves out merges by chance."""
    tokenizer = Tokenizer.from_str(engine("bytes").to_str())
    tokenizer.model = models.BPE(*_parts(tokenizer), dropout=0.5)
    return tokenizer


def _parts(tokenizer: Tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def compatibly() -> Tokenizer:
    tokenizer = Tokenizer.from_str(engine("bytes").to_str())
    tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


@pytest.mark.parametrize("make", [whispering, compatibly])
def test_what_is_not_known_or_not_the_same_is_not_used(make):
    assert quick.agreeing(make()) is None


def test_a_tokenizer_that_differs_in_one_kind_of_text_is_not_used(monkeypatch):
    """The probes see it: an engine of GPT-2's pieces is no engine of GPT-4's."""
    other = engine("bytes").to_str()
    monkeypatch.setattr(quick.fastokens.Tokenizer, "from_json_str", staticmethod(_loader(other)))
    assert quick.agreeing(engine("gpt4")) is None
    assert quick.agreeing(engine("bytes")) is not None


def _loader(text: str):
    load = quick.fastokens.Tokenizer.from_json_str
    return lambda _: load(text)


def wait(engine: quick.QuickEngine) -> None:
    for _ in range(1000):
        if engine._loading is not None and engine._loading.done():
            return
        time.sleep(0.01)
    raise AssertionError("never loaded")


def test_it_is_loaded_when_many_texts_are_asked_for_and_changes_nothing():
    tokenizer = made.byte_tokenizer(made.CHATML)
    encoder = make_encoder(tokenizer, "<|im_end|>", many=True)
    texts = [f"Hello {k}, how are you? é 日本 😀" if k % 3 == 0 else f"Hello {k}\n\n" for k in range(200)]
    plain = [ids.tolist() for ids in replace(encoder, quick=None).ids(texts)]
    assert [ids.tolist() for ids in encoder.ids(texts)] == plain
    assert encoder.quick is not None
    wait(encoder.quick)
    assert set(encoder.quick.ids(texts)) == {text for text in texts if "😀" not in text}
    assert [ids.tolist() for ids in encoder.ids(texts)] == plain


def test_groups_are_the_same_before_and_after():
    renderer = make_renderer(made.byte_tokenizer(made.CHATML), many=True)
    records = [
        Record(prompt=f"What is {k}?", completions=(f"It is {k}.", "No\n"), origin="f:1") for k in range(300)
    ]
    first = list(renderer.render_all(records))
    assert renderer.encoder.quick is not None
    wait(renderer.encoder.quick)
    again = list(renderer.render_all(records))
    slow = replace(renderer, rules=replace(renderer.rules, encoder=replace(renderer.encoder, quick=None)))
    for one, other, third in zip(first, again, slow.render_all(records), strict=True):
        for a, b, c in zip(
            *(list((group.prompt, *group.completions)) for group in (one, other, third)), strict=True
        ):
            assert a.tolist() == b.tolist() == c.tolist()
            assert a.dtype == b.dtype == c.dtype == np.int32


def test_preparing_many_rows_loads_it(tmp_path, monkeypatch):
    loaded, load = [], quick.fastokens.Tokenizer.from_json_str
    monkeypatch.setattr(
        quick.fastokens.Tokenizer, "from_json_str", staticmethod(lambda text: loaded.append(1) or load(text))
    )
    tokenizer, file = made.byte_tokenizer(made.CHATML), tmp_path / "rows.jsonl"
    rows = [{"prompt": f"What is {k}?", "chosen": f"It is {k}.", "rejected": "No"} for k in range(300)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert len(prepare(file, tokenizer, "pairs", DataOptions()).groups) == 300
    assert gc.isenabled()
    for _ in range(500):
        if loaded:
            return
        time.sleep(0.01)
    raise AssertionError("never loaded")


def test_without_the_library_rows_are_prepared_to_the_same_tokens(tmp_path):
    """In a process that cannot import it; the digest is that of all token ids."""
    tokenizer, file = made.byte_tokenizer(made.CHATML), tmp_path / "rows.jsonl"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"prompt": f"What is {k}?", "chosen": f"It is {k}.", "rejected": "No"} for k in range(300)]
    file.write_text("\n".join(map(json.dumps, rows)))
    digests = []
    for missing in ("fastokens", "no_such_library"):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, missing, str(file), str(tmp_path / "tokenizer")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout)
    assert digests[0] == digests[1] and len(digests[0]) == 65


def test_a_tokenizer_that_splits_special_tokens_has_none():
    tokenizer = made.byte_tokenizer(made.CHATML)
    tokenizer.split_special_tokens = True
    assert make_encoder(tokenizer, "<|im_end|>", many=True).quick is None
