"""Ends of turns, rendered prompts, weights, variables of the template, and tokens that a model does not have."""

import json

import numpy as np
import pytest

from preftune.data.chat_templates import SHIPPED, apply_template, shipped_template
from preftune.data.formats import detect
from preftune.data.inspect import inspect_data, token_pieces
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.render import make_renderer
from preftune.data.vocabulary import note_rows
from preftune.errors import ConfigError, DataError, ModelError
from preftune.types import Message, Record, TurnExtras
from tests.data import tokenizers_for_tests as made
from tests.data.published_templates import CHATML, GEMMA2, LLAMA2, PHI3, QWEN3, tokenizer_of

ASK, OK = Message(role="user", content="Name a fruit."), Message(role="assistant", content="An apple.")
PAIR = Record(prompt=(ASK,), completions=("An apple.", "A stone."), pairs=((0, 1),), origin="f:1")


def scored(renderer, record=PAIR, k=0):
    group = renderer.render(record)
    ids = group.completions[k]
    return renderer.decode(ids[group.scored[k]] if group.scored else ids)


# --- the end of a turn ---

ENDS = {
    "the end of the turn before that of the sequence": (PHI3, "</s>", "An apple.<|end|>"),
    "a token that is not special": (CHATML.replace("<|im_end|>", "</think>"), "</s>", "An apple.</think>"),
    "several tokens": (CHATML.replace("<|im_end|>", "### End"), "</s>", "An apple.### End"),
    "a line of its own": (CHATML.replace("<|im_end|>", "\n### End"), "</s>", "An apple.\n### End"),
    "a text and a token": (
        CHATML.replace("<|im_end|>", " [done]<|im_end|>"),
        "</s>",
        "An apple. [done]<|im_end|>",
    ),
    "the end of the sequence alone": (LLAMA2, "</s>", " An apple. </s>"),
    "none, so the tokenizer's own": (CHATML.replace("<|im_end|>", ""), "</s>", "An apple.</s>"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_an_answer_ends_as_the_template_ends_it(kind):
    template, eos, expected = ENDS[kind]
    renderer = make_renderer(tokenizer_of(template, eos))
    assert scored(renderer) == expected
    cut = Record(prompt=(ASK,), completions=("An apple.",), ended=(False,), origin="f:1")
    assert scored(renderer, cut).strip() == "An apple."


def test_several_ends_stop_a_sample():
    said = "(m.content or '') + (m.tool_calls | tojson + '<|end|>' if m.tool_calls else '<|im_end|>')"
    template = CHATML.replace("m['content'] + '<|im_end|>'", said)
    renderer = make_renderer(tokenizer_of(template, "</s>"))
    names = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids)
    assert names == ["<|im_end|>", "<|end|>", "</s>"]
    pieces = make_renderer(tokenizer_of(ENDS["several tokens"][0]))
    assert pieces.stop_texts == ("### End",)


# --- prompts that are rendered already ---

RENDERED = {
    "ChatML": (CHATML, "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n"),
    "ChatML with an answer begun": (CHATML, "Name a fruit.<|im_end|>\n<|im_start|>user\nName a metal."),
    "ChatML in ordinary tokens": (
        CHATML.replace("|", "!"),
        "<!im_start!>user\nName a fruit.<!im_end!>\n<!im_start!>assistant\n",
    ),
    "Llama 2": (LLAMA2, "<s>[INST] Name a fruit. [/INST]"),
    "Llama 2 without the beginning": (LLAMA2, "[INST] Name a fruit. [/INST]"),
    "Gemma": (GEMMA2, "<start_of_turn>user\nName a fruit.<end_of_turn>\n<start_of_turn>model\n"),
    "the beginning of a sequence": (CHATML, "<s>Name a fruit."),
    "code with a hole": (CHATML, "<|user|>x = 0\n<|system|>\ny = 2<|end|>"),
}


@pytest.mark.parametrize("kind", RENDERED)
def test_a_rendered_prompt_is_refused(kind):
    template, prompt = RENDERED[kind]
    renderer = make_renderer(tokenizer_of(template))
    for record in (
        Record(prompt=prompt, completions=("a",), origin="f:1"),
        Record(prompt=(Message(role="user", content=prompt),), completions=("a",), origin="f:1"),
    ):
        with pytest.raises(DataError, match=r"f:1: The prompt is already rendered.*--rows\.template plain"):
            renderer.render(record)
    plain = make_renderer(tokenizer_of(template), "plain").render(Record(prompt=prompt, completions=("a",)))
    assert len(plain.prompt)


@pytest.mark.parametrize(
    "prompt", ["What does <|end|> mean in a template?", "Is a <s> b right?", "a < b | c", "Use [INST]?"]
)
def test_a_prompt_that_names_a_token_is_kept(prompt):
    renderer = make_renderer(tokenizer_of(CHATML, "<|im_end|>"))
    assert prompt in renderer.decode(renderer.render(Record(prompt=prompt, completions=("a",))).prompt)


# --- blanks ---


def test_a_blank_at_the_end_of_a_plain_prompt_goes_to_the_completions():
    tokenizer = made.word_tokenizer()
    renderer = make_renderer(tokenizer)
    group = renderer.render(Record(prompt="How are ", completions=("you", "we"), origin="f:1"))
    together = tokenizer("How are you", add_special_tokens=False)["input_ids"]
    assert [*group.prompt.tolist(), *group.completions[0].tolist()[:-1]] == together
    asked = renderer.render(Record(prompt="How are ", completions=(), origin="f:1"))
    assert asked.prompt.tolist() == group.prompt.tolist()


def test_token_pieces_keep_blanks():
    renderer = make_renderer(made.word_tokenizer())
    ids = renderer.encoder.ids(["How are you today?"])[0]
    assert "".join(token_pieces(ids, renderer)) == " How are you today?"
    assert token_pieces(ids[-2:], renderer) == [" you", " today?"]


# --- weights ---


def turns(*weights, role="assistant"):
    said = []
    for k, weight in enumerate(weights):
        extras = None if weight is None else TurnExtras(weight=float(weight))
        said += [Message(role="user", content=f"ask {k}")] * (k > 0)
        said.append(Message(role=role, content=f"said {k}", extras=extras))
    return tuple(said)


def test_an_answer_of_weight_zero_is_not_scored():
    renderer = make_renderer(tokenizer_of(CHATML, "<|im_end|>"))
    record = Record(prompt=(ASK,), completions=(turns(0, 1), turns(None, 0)), origin="f:1")
    assert scored(renderer, record, 0) == "said 1<|im_end|>"
    assert scored(renderer, record, 1) == "said 0<|im_end|>"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            Record(prompt=(ASK,), completions=(turns(0, 0),), origin="f:1"),
            "No turn of the completion is scored",
        ),
        (Record(prompt=(ASK,), completions=(turns(0),), origin="f:1"), "No turn of the completion is scored"),
        (
            Record(prompt=(ASK, *turns(1), ASK), completions=("a",), origin="f:1"),
            "A turn that is not scored has a weight",
        ),
        (
            Record(prompt=turns(1, role="user"), completions=("a",), origin="f:1"),
            "A turn that is not scored has a weight",
        ),
    ],
)
def test_a_weight_without_effect_is_refused(record, words):
    with pytest.raises(DataError, match=f"f:1: {words}"):
        make_renderer(tokenizer_of(CHATML, "<|im_end|>")).render(record)


def test_a_weight_of_a_half_is_refused():
    row = {"prompt": "Hi", "chosen": [{"role": "assistant", "content": "a", "weight": 0.5}], "rejected": "b"}
    with pytest.raises(DataError, match=r"weight chosen\[0\]\.weight is not supported.*got 0\.5.*0 .*or 1"):
        detect([row]).convert(row)


# --- variables of the template ---


def thinking(renderer, kwargs=""):
    group = renderer.render(
        Record(prompt="Hi", completions=("a",), chat_template_kwargs=kwargs, origin="f:1")
    )
    return renderer.decode(group.prompt).endswith("<think>\n\n</think>\n\n"), renderer.decode(
        group.completions[0]
    )


def test_variables_reach_the_template_by_row_and_by_option():
    off, on = DataOptions(chat_template_kwargs={"enable_thinking": False}), '{"enable_thinking": true}'
    assert thinking(make_renderer(tokenizer_of(QWEN3, "<|im_end|>"))) == (
        False,
        "<think>\n\n</think>\n\na<|im_end|>",
    )
    assert thinking(make_renderer(tokenizer_of(QWEN3, "<|im_end|>"), off)) == (True, "a<|im_end|>")
    assert not thinking(make_renderer(tokenizer_of(QWEN3, "<|im_end|>"), off), on)[0]
    assert thinking(make_renderer(tokenizer_of(QWEN3, "<|im_end|>")), '{"enable_thinking": false}')[0]


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt"])
def test_a_variable_that_the_template_does_not_read_is_refused(name):
    with pytest.raises(
        DataError, match=rf"f:1: The variable {name} in chat_template_kwargs .*enable_thinking"
    ):
        thinking(make_renderer(tokenizer_of(QWEN3, "<|im_end|>")), json.dumps({name: True}))
    with pytest.raises(ConfigError, match=f"The variable {name} in rows.chat_template_kwargs"):
        make_renderer(tokenizer_of(QWEN3, "<|im_end|>"), DataOptions(chat_template_kwargs={name: True}))


@pytest.mark.parametrize("options", [{"chat_template": "qwen3"}, {"chat_template_kwargs": {"a": 1}}])
def test_options_of_the_template_are_refused_on_plain_text(options):
    with pytest.raises(ConfigError, match="no effect on plain text"):
        DataOptions(template="plain", **options)


def test_plain_text_has_no_place_for_tools():
    record = Record(prompt="Hi", completions=("a",), tools='[{"function": {"name": "f"}}]', origin="f:1")
    with pytest.raises(DataError, match="f:1: Plain text has no place for tools"):
        make_renderer(tokenizer_of(None)).render(record)


# --- another template ---


def test_a_template_of_a_file_replaces_that_of_the_model(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML.replace("<|im_end|>", "<|end|>"))
    tokenizer = tokenizer_of(CHATML)
    assert scored(make_renderer(tokenizer, DataOptions(chat_template=str(path)))) == "An apple.<|end|>"
    assert tokenizer.chat_template == path.read_text()  # and is saved with it


def test_templates_that_cannot_be_read_or_do_not_fit(tmp_path):
    (tmp_path / "empty.jinja").write_text(" \n")
    for name, words in (
        ("nowhere.jinja", "cannot be read.*qwen3, qwq"),
        (str(tmp_path / "empty.jinja"), "is empty"),
    ):
        with pytest.raises(ConfigError, match=words):
            apply_template(tokenizer_of(None), DataOptions(chat_template=name))
    with pytest.raises(ModelError, match=r"r1-distill is not for this tokenizer; got no token"):
        apply_template(made.byte_tokenizer(), DataOptions(chat_template="r1-distill"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_writes_the_same_whatever_follows(name):
    """The text of a dialogue begins with that of each shorter one, and with the prompt of each answer."""
    tokenizer = tokenizer_of(None, SHIPPED[name][-1])
    chat = make_renderer(tokenizer, DataOptions(chat_template=name)).chat
    dialogue = [
        Message(role="system", content="Be brief."),
        ASK,
        Message(
            role="assistant",
            content="<think>\nA fruit.\n</think>\n\nAn apple." if name != "llama-3" else "An apple.",
        ),
        ASK,
        OK,
        Message(role="user", content="And now?"),
        Message(role="assistant", content="A pear.", extras=TurnExtras(reasoning="Another.")),
    ]
    whole = chat.write(dialogue, False)
    for count in range(2, len(dialogue)):
        assert whole.startswith(chat.write(dialogue[:count], dialogue[count].role == "assistant"))
    assert shipped_template(name).count("\n") > 10


# --- what a template leaves out by design is counted ---


@pytest.mark.parametrize(
    "earlier",
    [
        {"role": "assistant", "content": "<think>A greeting.</think>Hello."},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
    ],
)
def test_reasoning_that_the_template_leaves_out_of_a_prompt_is_counted(earlier, tmp_path):
    template = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    turns_ = [{"role": "user", "content": "Hi."}, earlier, {"role": "user", "content": "Name a fruit."}]
    rows = [{"prompt": turns_, "chosen": "An apple.", "rejected": "A stone."}]
    rows += [{"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A stone."}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = tokenizer_of(template, "<|im_end|>")
    report = prepare(data, tokenizer, "pairs", DataOptions()).report
    ((what, count),) = report.left_out.items()
    assert count == 1 and f"1 {what}" in report.lines() and "reasoning of earlier answers" in what
    assert f"1 {what}" in inspect_data(data, tokenizer, DataOptions()).lines()
    kept = prepare(data, tokenizer_of(CHATML, "<|im_end|>"), "pairs", DataOptions()).report
    assert bool(kept.left_out) == ("reasoning_content" in earlier)


# --- tokens that the model does not have ---


def test_a_token_without_an_embedding_is_refused_with_row_and_token(tmp_path):
    tokenizer = tokenizer_of(CHATML, "<|im_end|>")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    data = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"prompt": "Hi", "chosen": "a<|new|>b", "rejected": "b"},
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    assert len(prepare(data, tokenizer, "pairs", DataOptions()).groups) == 2  # nobody knows the model
    note_rows(tokenizer, rows)
    for call in (
        lambda: prepare(data, tokenizer, "pairs", DataOptions()),
        lambda: inspect_data(data, tokenizer, DataOptions()),
    ):
        with pytest.raises(
            DataError,
            match=rf"pairs.jsonl:2: the model has no embedding.*token {rows} .*<\|new\|>.*below {rows}",
        ):
            call()
    skipped = prepare(data, tokenizer, "pairs", DataOptions(bad_rows="skip"))
    assert len(skipped.groups) == 1 and skipped.bad_rows[0].row == 2
    assert np.max(skipped.groups[0].prompt) < rows
