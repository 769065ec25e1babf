"""Tokens in batches, and cuts: the tokens of a text are those of its parts, or it is not cut."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from preftune.data.encode import make_encoder
from preftune.data.render import make_renderer
from preftune.types import Record
from tests.data import tokenizers_for_tests as made

SAMPLE = "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
TOKENIZERS = {"bytes": made.byte_tokenizer(made.CHATML), "words": made.word_tokenizer(made.CHATML)}
PARTS = ["<s>", "<|im_start|>", "<|im_end|>", "<|im_", "\n", " ", "a", "Hello there", "é", "|>"]
pieces = st.lists(st.sampled_from(PARTS), max_size=8)
texts = st.text(st.sampled_from("ab \n<s>é"), min_size=1, max_size=8)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(parts=pieces, other=pieces)
def test_the_tokens_of_a_text_are_those_of_its_parts(name, parts, other):
    encoder, text = make_encoder(TOKENIZERS[name], SAMPLE, many=False), "".join(parts)
    cut = encoder.last_cut(text)
    assert cut or not any(token in text for token in ("<s>", "<|im_start|>", "<|im_end|>"))
    whole = text + "".join(other)
    expected, left, right, again = (
        ids.tolist() for ids in encoder.ids([whole, whole[:cut], whole[cut:], whole])
    )
    assert left + right == expected == again
    assert expected == TOKENIZERS[name](whole, add_special_tokens=False)["input_ids"]


def added(**how) -> object:
    tokenizer = made.byte_tokenizer(made.CHATML)
    tokenizer.add_tokens([AddedToken(how.pop("content"), **how)], special_tokens=how.get("special", True))
    return tokenizer


def first_only():
    tokenizer = made.word_tokenizer(made.CHATML)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def split_specials():
    tokenizer = made.byte_tokenizer(made.CHATML)
    tokenizer.split_special_tokens = True
    return tokenizer


@pytest.mark.parametrize(
    ("make", "cuts"),
    [
        (lambda: made.byte_tokenizer(made.CHATML), {"<s>", "<|im_start|>", "<|im_end|>"}),
        (lambda: added(content="<|im_end|>\n", normalized=False, special=False), {"<s>", "<|im_start|>"}),
        (lambda: added(content="x<|im_", normalized=False, special=False), {"<s>"}),
        (lambda: added(content="user", normalized=False, rstrip=True), {"<s>", "<|im_start|>", "<|im_end|>"}),
        (first_only, set()),
        (split_specials, set()),
    ],
)
def test_where_a_text_may_be_cut(make, cuts):
    assert set(make_encoder(make(), SAMPLE, many=False).cuts) == cuts


def test_an_engine_of_words_would_not_bear_a_cut_after_the_first():
    tokenizer = first_only()
    whole, *parts = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<s>Hello", "<s>", "Hello")
    )
    assert whole != [*parts[0], *parts[1]]  # or the case above shows nothing


@pytest.mark.parametrize(
    "template", [made.CHATML, made.LLAMA3, made.GEMMA, made.MISTRAL, made.TWO_BOS, made.NO_END]
)
@settings(max_examples=15, deadline=None)
@given(prompt=texts, answers=st.lists(texts, min_size=1, max_size=3))
def test_groups_are_those_of_a_renderer_that_neither_cuts_nor_skips(template, prompt, answers):
    renderer = make_renderer(made.byte_tokenizer(template))
    encoder = replace(renderer.encoder, engine=None, cuts=())
    writing = replace(renderer.writing, chat=replace(renderer.chat, fixed=False))
    plain = replace(renderer, writing=writing, rules=replace(renderer.rules, encoder=encoder))
    record = Record(prompt=prompt, completions=tuple(answers), origin="f:1")
    (ours,), (theirs,) = renderer.render_all([record]), plain.render_all([record])
    if isinstance(theirs, Exception):
        assert str(ours) == str(theirs)
    else:
        one, other = (
            [ids.tolist() for ids in (group.prompt, *group.completions)] for group in (ours, theirs)
        )
        assert one == other
