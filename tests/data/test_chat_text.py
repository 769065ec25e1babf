"""Skeletons of templates: what they write is what the template writes, and templates that do more with texts
have none.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.chat_run import run_template
from preftune.data.chat_syntax import only_writes_texts
from preftune.data.chat_text import make_chat_text
from preftune.errors import DataError
from preftune.types import Message
from tests.data import tokenizers_for_tests as made

SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # the system text is kept in a name and written into the first user turn; turns must alternate
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = 'None.' %}{% endif %}{{ bos_token }}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + content + ' [/INST]' }}{% else %}{{ ' ' + content + eos_token }}"
    "{% endif %}{% endfor %}"
)
ODD = (  # stripped on one side, written twice, left out, told apart by what comes next
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}\n "
    "{%- if m.role == 'tool' -%}[{{ ns.n }}]{%- elif loop.last -%}\n {{ m.content.lstrip() }} \n{{ m.content.rstrip() }}"
    "{%- else %} {{ m.content | trim }} \n {{- m.content if m.content is string else '' }}{% endif -%}{%- endfor -%}"
    "{{ messages | length }}%s{{ '50%' }}{{ (messages | last).role | upper }}{{ '\n' if add_generation_prompt }}"
)
WRITING = {
    "smol": SMOL,
    "llama2": LLAMA2,
    "odd": ODD,
    "chatml": made.CHATML,
    "llama3": made.LLAMA3,
    "gemma": made.GEMMA,
    "mistral": made.MISTRAL,
    "no end": made.NO_END,
    "broken boundary": made.BROKEN_BOUNDARY,
    "thinking": made.THINKING,
    "two bos": made.TWO_BOS,
}
LOOKING = {
    "at what is in it": "{% for m in messages %}{% if 'x' in m.content %}a{% endif %}{{ m.content }}{% endfor %}",
    "whether it is empty": "{% for m in messages %}{{ m.content or 'nothing' }}{% endfor %}",
    "at its length": "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "at a part": "{% for m in messages %}{{ m.content[:3] }}{{ m.content.split('x')[-1] }}{% endfor %}",
    "at letters": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "stripped with what stands before": "{% for m in messages %}{{ (' ' + m.content) | trim }}{% endfor %}",
    "through a name": "{% for m in messages %}{% set c = m.content %}{% if c == 'x' %}a{% endif %}{% endfor %}",
    "through a name that is set later": "{% for m in messages %}{% if c == 'x' %}a{% endif %}{% set c = m.content %}{% endfor %}",
    "through a namespace": "{% set n = namespace(c='') %}{% for m in messages %}{% set n.c = m.content %}{% endfor %}{{ n.c }}",
    "at the whole turn": "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "at all values": "{% for m in messages %}{% for v in m.values() %}{{ v | length }}{% endfor %}{% endfor %}",
    "at all turns": "{{ messages | string }}",
    "at a neighbor": "{% for m in messages %}{% if loop.nextitem == m %}a{% endif %}{% endfor %}",
    "letter by letter": "{% for m in messages %}{% for c in m.content %}{{ loop.index }}{% endfor %}{% endfor %}",
    "in a macro": "{% macro f(x) %}{{ x | length }}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
    "in a block that is filtered": "{% filter upper %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfilter %}",
    "in a block that is kept": "{% for m in messages %}{% set c %}{{ m.content }}{% endset %}{{ c | length }}{% endfor %}",
    "by a filter of a choice": "{% for m in messages %}{{ (m.content if loop.first else 'x') | length }}{% endfor %}",
    "at the clock": "{{ strftime_now('%S') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "at chance": "{{ [1, 2] | random }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "by a field that is not known": "{% for m in messages %}{% for k in ['content'] %}{{ m[k] | length }}{% endfor %}{% endfor %}",
    "that cannot be read": "{% for m in messages %}",
}
roles = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=5)
content = st.text(st.sampled_from("ab \n\t\u00a0é{}%<|\ue000\ue001\x1c"), max_size=6)


@pytest.mark.parametrize("name", WRITING)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), generation=st.booleans())
def test_a_skeleton_writes_what_the_template_writes(name, data, generation):
    chat = CHATS[name]
    turns = [Message(role=role, content=data.draw(content)) for role in data.draw(roles)]
    assert chat.fixed
    try:
        expected = run_template(chat.tokenizer, turns, generation)
    except DataError as error:
        with pytest.raises(DataError) as caught:
            chat.write(turns, generation)
        assert str(caught.value) == str(error)
        return
    assert chat.write(turns, generation) == expected


CHATS = {name: make_chat_text(made.byte_tokenizer(template)) for name, template in WRITING.items()}


@pytest.mark.parametrize("how", LOOKING)
def test_a_template_that_looks_at_texts_is_run(how):
    assert not only_writes_texts(LOOKING[how])
    assert not make_chat_text(made.byte_tokenizer(LOOKING[how])).fixed


def test_a_template_is_run_once_for_roles_and_not_for_texts(monkeypatch):
    chat, runs = make_chat_text(made.byte_tokenizer(made.CHATML)), []
    inner = type(chat.tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(chat.tokenizer), "apply_chat_template", lambda *a, **k: runs.append(1) or inner(*a, **k)
    )
    for number in range(9):
        chat.write([Message(role="user", content=str(number))], True)
    assert len(runs) == 2
