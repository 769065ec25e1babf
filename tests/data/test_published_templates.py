"""Every word of every answer is in the scored tokens, or the row is refused: for the published chat templates, and
for those of this package, which must not refuse.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from preftune.data.chat_templates import SHIPPED
from preftune.data.formats import detect
from preftune.data.options import DataOptions
from preftune.data.render import make_renderer
from preftune.errors import DataError
from preftune.types import Message, Record
from tests.data.published_templates import TEMPLATES, tokenizer_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a town.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"town": "Ghent"}'},
}
ASK = {"role": "user", "content": "Is it wet in Ghent?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes, it rains.", "No idea."))
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": "light drizzle"}
THOUGHT = {**YES, "reasoning_content": "Ghent lies by the sea."}
INLINE = {"role": "assistant", "content": "<think>\nGhent lies by the sea.\n</think>\n\nYes, it rains."}
HELLO = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Good morning."}]
ROWS = {
    "pair": {"prompt": [ASK], "chosen": [YES], "rejected": [NO]},
    "system": {
        "prompt": [{"role": "system", "content": "Be brief."}, ASK],
        "chosen": [YES],
        "rejected": [NO],
    },
    "earlier turns": {"prompt": [*HELLO, ASK], "chosen": [YES], "rejected": [NO]},
    "a call": {"tools": TOOLS, "prompt": [ASK], "chosen": [CALLED], "rejected": [NO]},
    "a call with text": {
        "tools": TOOLS,
        "prompt": [ASK],
        "chosen": [{**CALLED, "content": "I ask."}],
        "rejected": [NO],
    },
    "two calls": {
        "tools": TOOLS,
        "prompt": [ASK],
        "chosen": [
            {
                **CALLED,
                "tool_calls": [
                    CALL,
                    CALL | {"function": {"name": "weather", "arguments": '{"town": "Bruges"}'}},
                ],
            }
        ],
        "rejected": [NO],
    },
    "a call in the prompt": {
        "tools": TOOLS,
        "prompt": [ASK, CALLED, RESULT],
        "chosen": [YES],
        "rejected": [NO],
    },
    "a call on the way": {
        "tools": TOOLS,
        "prompt": [ASK],
        "chosen": [CALLED, RESULT, YES],
        "rejected": [CALLED, RESULT, NO],
    },
    "reasoning": {"prompt": [ASK], "chosen": [THOUGHT], "rejected": [NO]},
    "reasoning in the text": {"prompt": [ASK], "chosen": [INLINE], "rejected": [NO]},
    "reasoning on the way": {
        "prompt": [HELLO[0]],
        "chosen": [{**HELLO[1], "reasoning_content": "A greeting."}, ASK, THOUGHT],
        "rejected": [{**HELLO[1], "reasoning_content": "A greeting."}, ASK, NO],
    },
}
WRITTEN = {  # what each family writes; everything else it refuses or leaves out
    "pair": set(TEMPLATES) - {"r1-distill"},  # whose prompt ends with a thought that the answer does not have
    "system": set(TEMPLATES) - {"r1-distill", "mistral-v3", "gemma-2"},
    "earlier turns": set(TEMPLATES) - {"r1-distill"},
    "a call": {"llama-3.1", "mistral-v3", "mistral-v7", "qwen2.5", "qwen3"},
    "a call with text": {"qwen2.5", "qwen3"},
    "two calls": {"mistral-v3", "mistral-v7", "qwen2.5", "qwen3"},
    "a call in the prompt": {"llama-3.1", "mistral-v3", "mistral-v7", "qwen2.5", "qwen3"},
    "a call on the way": {"llama-3.1", "mistral-v3", "mistral-v7", "qwen2.5"},
    "reasoning": {"qwen3"},
    "reasoning in the text": set(TEMPLATES) - {"r1-distill"},
    "reasoning on the way": set(),
}
REFUSED = {
    "qwen3": set(),
    "qwq": set(),
    "r1-distill": {"a call", "a call with text", "two calls", "a call in the prompt", "a call on the way"},
    "llama-3": {"a call with text", "two calls", "reasoning", "reasoning on the way"},
}  # R1 has no place for tools; Llama 3 none for reasoning, for text beside a call and for two calls
EOS = {
    "qwen3": "<|im_end|>",
    "qwq": "<|im_end|>",
    "r1-distill": "<｜end▁of▁sentence｜>",
    "llama-3": "<|eot_id|>",
}


def rendered(renderer, row):
    """(the record, the group) of a row."""
    record = detect([row]).convert(row)
    return record, renderer.render(record)


def words_of(turn):
    words = turn.content.replace("<think>", " ").replace("</think>", " ").split() + turn.reasoning.split()
    for call in turn.tool_calls:
        words += [call.name, *json.loads(call.arguments), *json.loads(call.arguments).values()]
    return words


def check_words(renderer, record, group):
    """Every word of the answers is in the scored tokens, and every word of the prompt in the prompt's."""
    prompt = renderer.decode(group.prompt)
    assert all(word in prompt for turn in record.prompt for word in words_of(turn))
    for k, completion in enumerate(record.completions):
        turns = (
            (Message(role="assistant", content=completion),) if isinstance(completion, str) else completion
        )
        ids = group.completions[k]
        mask = group.scored[k] if group.scored else np.ones(len(ids), dtype=bool)
        scored, other = renderer.decode(ids[mask]), renderer.decode(ids[~mask])
        for turn in turns:
            for word in words_of(turn):
                assert word in (scored if turn.role == "assistant" else other)
        assert ids[-1] in renderer.stop_ids and "Is it wet" not in scored


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_every_word_of_every_answer_is_scored_or_the_row_is_refused(family, case):
    renderer = make_renderer(tokenizer_of(*TEMPLATES[family]))
    try:
        record, group = rendered(renderer, ROWS[case])
    except DataError as error:
        assert family not in WRITTEN[case], str(error)
        assert "hat template" in str(error)
        return
    check_words(renderer, record, group)
    assert family in WRITTEN[case]


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_writes_every_row_that_its_family_has(name, case):
    renderer = make_renderer(tokenizer_of(None, EOS[name]), DataOptions(chat_template=name))
    try:
        record, group = rendered(renderer, ROWS[case])
    except DataError as error:
        assert case in REFUSED[name], str(error)
        return
    check_words(renderer, record, group)
    assert case not in REFUSED[name]


def test_ends_that_begin_alike_are_whole_tokens():
    """As in the harmony format: <|return|> ends a dialogue, <|end|> the answers before."""
    template = (
        "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    )
    renderer = make_renderer(tokenizer_of(template, "<|return|>"))
    record, group = rendered(renderer, ROWS["pair"])
    check_words(renderer, record, group)
    assert renderer.decode(group.completions[0]).endswith("Yes, it rains.<|return|>")


TRICKY = (
    "Yes.",
    "  blanks \n",
    "50% of %s",
    "<|im_end|>\n",
    "ends like it <|im_end|>",
    "</s>",
    "<end_of_turn>\n",
    "\ue000",
    " ",
)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("system", [False, True])
def test_an_answer_by_its_form_has_the_text_of_the_whole_dialogue(family, system):
    """The text around an answer follows from the roles; an answer written anew each time is the oracle."""
    renderer = make_renderer(tokenizer_of(*TEMPLATES[family]))
    slow = replace(renderer.writing, chat=replace(renderer.chat, fixed=False))
    prompt = tuple(
        Message(**turn) for turn in ([{"role": "system", "content": "Be brief."}] * system + [*HELLO, ASK])
    )
    for ended in (True, False):
        record = Record(
            prompt=prompt,
            completions=TRICKY,
            ended=(ended,) * len(TRICKY),
            labels=(1,) * len(TRICKY),
            origin="here",
        )
        results = []
        for writing in (renderer.writing, slow):
            try:
                results.append(writing.texts(record))
            except DataError as error:
                results.append(str(error))
        assert results[0] == results[1]


def test_published_templates_that_only_write_texts_have_forms_of_answers():
    """Without forms the test above would compare one path with itself."""
    turns = tuple(Message(**turn) for turn in (*HELLO, ASK))
    formed = [
        family
        for family, template in TEMPLATES.items()
        if make_renderer(tokenizer_of(*template)).chat.answer_form(turns) is not None
    ]
    assert "chatml" in formed and len(formed) >= 3
