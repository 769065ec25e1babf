"""Foreign chat templates: limits of work, and otherwise the same text as transformers writes."""

import json

import pytest
from jinja2 import TemplateError

from preftune.data.chat_environment import TooMuchWork, render_limited, variables_of
from preftune.data.chat_run import PLAIN, ChatContext, run_template
from preftune.data.render import make_renderer
from preftune.errors import ModelError
from preftune.types import Message, ToolCall, TurnExtras
from tests.data.published_templates import TEMPLATES, tokenizer_of

GREEDY = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that skips all": "{% for i in range(99999) if range(99999) | list | length == 1 %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a large text": "{{ 'a' * 10**9 }}",
    "a large list": "{{ [1] * 10**9 }}",
    "a large number": "{{ (10**1000)**1000 }}",
    "a width": "{{ 'a' | center(10**9) }}",
    "a width of a method": "{{ 'a'.ljust(10**9) }}",
    "tabs": "{{ 'a'.expandtabs(10**9) }}",
    "a format": "{{ '%999999999d' % 1 }}",
    "a format of a method": "{{ '{:999999999}'.format(1) }}",
    "doubling by ~": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by a block": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "a deep list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a deep list as JSON": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "a long separator": "{{ range(99999) | join('a' * 99999) }}",
    "lists of ranges": "{{ ([range(99999)] * 9999) | map('list') | list | length }}",
    "an indent": "{{ (('a\n') * 99999) | indent('b' * 99999) }}",
    "output in a loop": "{% for i in range(99999) %}{{ 'abcdefgh' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("how", GREEDY)
def test_a_template_that_does_too_much_is_stopped(how):
    with pytest.raises(TooMuchWork, match="too much work"):
        render_limited(GREEDY[how], {}, 0)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "expressions nested too deeply"),
        ("{{ '\\ud800' }}{% for m in messages %}{{ m.content }}{% endfor %}", "half of a surrogate pair"),
    ],
)
def test_a_template_that_cannot_be_read_is_one_sentence(template, message):
    with pytest.raises(ModelError, match=message):
        make_renderer(tokenizer_of(template))


def test_a_hanging_template_is_one_sentence():
    with pytest.raises(
        ModelError, match=r"chat template cannot be used.*too much work.*--rows\.chat_template"
    ):
        make_renderer(tokenizer_of(GREEDY["nested loops"]))


def test_long_texts_have_more_room():
    text = "a" * 3_000_000
    assert (
        render_limited(
            "{% for m in messages %}{{ m.content.strip() }}{% endfor %}",
            {"messages": [{"content": text}]},
            len(text),
        )
        == text
    )


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{% set x = namespace(_a=1) %}", "{{ lipsum.__globals__ }}"]
)
def test_the_sandbox_is_closed(template):
    with pytest.raises(TemplateError):
        render_limited(template, {}, 0)


def test_the_variables_of_a_template():
    known = variables_of(TEMPLATES["qwen3"][0])
    assert (
        known >= {"messages", "tools", "add_generation_prompt", "enable_thinking"}
        and "bos_token" not in known
    )


TURNS = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Is it wet?\n"),
    Message(
        role="assistant",
        content="<think>\nBy the sea.\n</think>\n\nYes.",
        extras=TurnExtras(reasoning="Rain."),
    ),
    Message(role="user", content="%s ~ {{ x }}"),
    Message(
        role="assistant",
        content="",
        extras=TurnExtras(tool_calls=(ToolCall(name="f", arguments='{"a": "é"}', id="abcdefghi"),)),
    ),
    Message(role="tool", content="dry", extras=TurnExtras(name="f", tool_call_id="abcdefghi")),
]
TOOLS = '[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}]'


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("context", [PLAIN, ChatContext(tools=TOOLS)], ids=["plain", "tools"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_the_text_is_that_of_transformers(family, context, count):
    """Of the turns as transformers passes them on: reasoning under both names, nothing that is none."""
    tokenizer = tokenizer_of(*TEMPLATES[family])
    tools = None if context is PLAIN else json.loads(TOOLS)
    turns = []
    for message in TURNS[:count]:
        turn = message.as_dict()
        if message.tool_calls:
            turn.pop("content")
            turn["tool_calls"] = [
                {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"a": "é"}}}
            ]
        turns.append(turn)
    try:
        expected = tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        with pytest.raises(Exception, match="refuses the dialogue") as caught:
            run_template(tokenizer, TURNS[:count], True, context)
        assert type(error).__name__ in str(caught.value)
        return
    assert run_template(tokenizer, TURNS[:count], True, context) == expected
