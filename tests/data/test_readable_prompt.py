"""Prompts as pages show them."""

import pytest

from preftune.data.options import DataOptions
from preftune.data.readable_prompt import readable_prompt
from preftune.data.render import make_renderer
from preftune.types import Message, Record
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer

TURNS = {
    "one turn": ([("user", "What is tea?\nSay it.")], "What is tea?\nSay it."),
    "a system prompt": ([("system", "Be brief."), ("user", "Tea?")], "system: Be brief.\nuser: Tea?"),
    "several turns": (
        [("user", "Tea?"), ("assistant", "A plant."), ("user", "user\nagain?")],
        "user: Tea?\nassistant: A plant.\nuser: user\nagain?",
    ),
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_without_marks(name):
    turns, expected = TURNS[name]
    renderer = make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"), DataOptions())
    prompt = tuple(Message(role=role, content=content) for role, content in turns)
    group = renderer.render(Record(prompt=prompt, completions=("x",), origin="a"))
    assert readable_prompt(group.prompt, renderer) == expected


def test_a_plain_prompt_is_its_text():
    renderer = make_renderer(byte_tokenizer(None, eos="</s>"), DataOptions(template="plain"))
    group = renderer.render(Record(prompt="user\nWhat?", completions=("x",), origin="a"))
    assert readable_prompt(group.prompt, renderer) == "user\nWhat?"
