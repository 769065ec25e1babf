"""The boundary between prompt and completion, for the template families and for random text."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.render import make_renderer, transcript
from preftune.errors import DataError, ModelError
from preftune.types import Message, Record
from tests.data import tokenizers_for_tests as made

DIALOGUE = (
    Message(role="user", content="Hello there"),
    Message(role="assistant", content="I am fine"),
    Message(role="user", content="What is the capital?"),
)
RECORD = Record(prompt=DIALOGUE, completions=("Paris.", "The sea."), pairs=((0, 1),), origin="f:1")
FAMILIES = {
    "chatml": (made.CHATML, "<|im_end|>", "<|im_end|>"),
    "chatml with another eos": (made.CHATML, "</s>", "<|im_end|>"),
    "llama3": (made.LLAMA3, "</s>", "<|eot_id|>"),
    "gemma": (made.GEMMA, "</s>", "<end_of_turn>"),
    "mistral": (made.MISTRAL, "</s>", "</s>"),
    "no end": (made.NO_END, "</s>", "</s>"),
    "thinking": (made.THINKING, "<|im_end|>", "<|im_end|>"),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    template, eos, end = FAMILIES[request.param]
    tokenizer = made.byte_tokenizer(template, eos=eos)
    return make_renderer(tokenizer), end


def test_a_completion_is_the_answer_and_its_end_of_turn(family):
    renderer, end = family
    group = renderer.render(RECORD)
    expected_head = "<think>\n\n</think>\n\n" if "think" in renderer.tokenizer.chat_template else ""
    for ids, text in zip(group.completions, RECORD.completions, strict=True):
        assert renderer.decode(ids).lstrip(" ") == expected_head + text + end
        assert ids[-1] == renderer.end_of_turn == renderer.tokenizer.convert_tokens_to_ids(end)
    assert (group.pairs, group.origin) == (RECORD.pairs, "f:1")


def test_prompt_and_completion_read_as_the_template_writes_them(family):
    renderer, _ = family
    group = renderer.render(RECORD)
    turns = [
        {"role": m.role, "content": m.content}
        for m in (*DIALOGUE, Message(role="assistant", content="Paris."))
    ]
    whole = renderer.tokenizer.apply_chat_template(turns, tokenize=False)
    both = renderer.decode(np.concatenate([group.prompt, group.completions[0]]))
    assert whole.startswith(
        both.removesuffix("</s>") if renderer.end.after and not renderer.end.text else both
    )


def test_the_prompt_is_what_the_model_is_asked_with(family):
    renderer, _ = family
    turns = [{"role": m.role, "content": m.content} for m in DIALOGUE]
    asked = renderer.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert renderer.render(RECORD).prompt.tolist() == asked


@pytest.mark.parametrize("template", [made.LLAMA3, made.GEMMA, made.MISTRAL, made.TWO_BOS])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_template_with_bos_gives_exactly_one(template, adds_bos):
    tokenizer = made.byte_tokenizer(template, adds_bos=adds_bos)
    group = make_renderer(tokenizer).render(RECORD)
    assert group.prompt[0] == tokenizer.bos_token_id
    assert (group.prompt == tokenizer.bos_token_id).sum() == 1
    assert all(tokenizer.bos_token_id not in ids for ids in group.completions)


def test_in_chat_mode_a_text_prompt_is_one_user_turn():
    renderer = make_renderer(made.byte_tokenizer(made.CHATML, eos="<|im_end|>"))
    group = renderer.render(replace(RECORD, prompt="Hi"))
    assert renderer.decode(group.prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("adds_bos", [False, True])
def test_plain_text_stays_as_it_is(adds_bos):
    tokenizer = made.byte_tokenizer(adds_bos=adds_bos)
    renderer = make_renderer(tokenizer)
    group = renderer.render(replace(RECORD, prompt="Two and two is", completions=(" four", " five")))
    assert renderer.decode(group.prompt) == ("<s>" if adds_bos else "") + "Two and two is"
    assert [renderer.decode(ids) for ids in group.completions] == [" four</s>", " five</s>"]


def test_a_plain_prompt_that_already_has_its_bos_gets_no_second():
    renderer = make_renderer(made.byte_tokenizer(adds_bos=True))
    group = renderer.render(replace(RECORD, prompt="<s>Two and two is"))
    assert renderer.decode(group.prompt) == "<s>Two and two is"


def test_plain_dialogues_are_transcripts():
    renderer = make_renderer(made.byte_tokenizer(made.CHATML), "plain")
    group = renderer.render(RECORD)
    expected = "\n\nHuman: Hello there\n\nAssistant: I am fine\n\nHuman: What is the capital?\n\nAssistant:"
    assert renderer.decode(group.prompt) == transcript(DIALOGUE) == expected
    assert renderer.decode(group.completions[0]) == " Paris.</s>"


def test_a_completion_that_ends_with_eos_gets_no_second():
    renderer = make_renderer(made.byte_tokenizer())
    group = renderer.render(replace(RECORD, prompt="Hi", completions=("Hello</s>", "you")))
    assert renderer.decode(group.completions[0]) == "Hello</s>"


def test_a_merge_over_the_boundary_gives_the_completion_its_own_tokens():
    tokenizer = made.byte_tokenizer()
    prompt, completion = "How are y", "ou today"
    joint = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert joint[: len(alone)] != alone  # or the test shows nothing
    group = make_renderer(tokenizer).render(replace(RECORD, prompt=prompt, completions=(completion, "es")))
    assert group.prompt.tolist() == alone
    assert group.completions[0].tolist()[:-1] == tokenizer(completion, add_special_tokens=False)["input_ids"]


def test_a_boundary_that_cannot_be_proven_is_an_error_with_both_tails():
    renderer = make_renderer(
        made.word_tokenizer()
    )  # a text of its own gets a blank that the whole does not have
    with pytest.raises(DataError, match=r"f:1: .*first tokens.*'How are y' against 'How are you"):
        renderer.render(Record(prompt="How are y", completions=("ou",), origin="f:1"))


def test_an_empty_plain_prompt_is_bos_or_an_error():
    record = replace(RECORD, prompt="")
    tokenizer = made.byte_tokenizer()
    assert make_renderer(tokenizer).render(record).prompt.tolist() == [tokenizer.bos_token_id]
    with pytest.raises(DataError, match=r"f:1: the prompt is empty and the tokenizer has no BOS"):
        make_renderer(made.byte_tokenizer(bos=None)).render(record)


def test_prompts_without_completions_render():
    renderer = make_renderer(made.byte_tokenizer(made.CHATML))
    group = renderer.render(Record(prompt="Hi", completions=()))
    assert group.completions == () and len(group.prompt) > 0


@pytest.mark.parametrize(
    ("template", "tokenizer", "words"),
    [
        ("auto", {"template": made.NO_GENERATION_PROMPT}, "no generation prompt"),
        ("plain", {"eos": None}, "no end-of-sequence token"),
        ("auto", {"template": made.NO_END, "eos": None}, "no end-of-sequence token"),
        ("chat", {}, "no chat template"),
        ("auto", {"template": "{{ raise_exception('never') }}"}, "cannot be used"),
        ("auto", {"template": "{{ messages[0]['content'] }}"}, "does not write the assistant's turn"),
    ],
)
def test_tokenizers_that_cannot_serve_are_errors(template, tokenizer, words):
    with pytest.raises(ModelError, match=words):
        make_renderer(made.byte_tokenizer(**tokenizer), template)


def test_a_template_that_changes_the_prompt_when_answered_is_an_error():
    renderer = make_renderer(made.byte_tokenizer(made.BROKEN_BOUNDARY))
    with pytest.raises(DataError, match=r"f:1: .*differently.*user \(last\)"):
        renderer.render(replace(RECORD, completions=("The capital of France is Paris.",)))


def test_a_template_that_refuses_a_role_says_so_for_the_row():
    renderer = make_renderer(made.byte_tokenizer(made.GEMMA))
    prompt = (Message(role="system", content="Be brief"), *DIALOGUE)
    with pytest.raises(DataError, match=r"f:1: .*refuses.*System role not supported"):
        renderer.render(replace(RECORD, prompt=prompt))


def test_one_bad_record_does_not_stop_the_others():
    renderer = make_renderer(made.byte_tokenizer(made.GEMMA))
    bad = replace(RECORD, prompt=(Message(role="system", content="Be brief"), *DIALOGUE), origin="f:2")
    first, second, third = renderer.render_all([RECORD, bad, RECORD])
    assert isinstance(second, DataError)
    assert [ids.tolist() for ids in first.completions] == [ids.tolist() for ids in third.completions]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
answer = text.filter(lambda value: value.strip())
RENDERERS = {
    "plain": make_renderer(made.byte_tokenizer()),
    "chatml": make_renderer(made.byte_tokenizer(made.CHATML, eos="<|im_end|>")),
    "llama3": make_renderer(made.byte_tokenizer(made.LLAMA3)),
    "mistral": make_renderer(made.byte_tokenizer(made.MISTRAL)),
    "no end": make_renderer(made.byte_tokenizer(made.NO_END)),
}


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=60, deadline=None)
@given(prompt=text, completions=st.lists(answer, min_size=1, max_size=3))
def test_any_text_comes_back_from_its_tokens(name, prompt, completions):
    renderer = RENDERERS[name]
    group = renderer.render(Record(prompt=prompt, completions=tuple(completions)))
    trims = "trim" in (renderer.tokenizer.chat_template or "")
    end = renderer.tokenizer.convert_ids_to_tokens(renderer.end_of_turn)
    assert (prompt.strip() if trims else prompt) in renderer.decode(group.prompt)
    for ids, completion in zip(group.completions, completions, strict=True):
        written = renderer.decode(ids).removesuffix(end)
        expected = completion.strip() if trims else completion
        assert written == (" " if name in ("mistral", "no end") else "") + expected


def test_a_cut_off_completion_has_no_end_of_turn(family):
    renderer, _ = family
    whole = renderer.render(RECORD)
    group = renderer.render(replace(RECORD, ended=(True, False)))
    assert group.completions[0].tolist() == whole.completions[0].tolist()
    assert renderer.end_of_turn not in group.completions[1].tolist()
    assert [*group.completions[1].tolist(), renderer.end_of_turn] == whole.completions[1].tolist()
