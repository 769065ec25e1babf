"""Ten families of published chat templates, rewritten for tests: what each writes, leaves out and refuses is as in
the published one; long fixed texts are shorter.
"""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # the system text goes into the first user turn
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA31 = (  # tools in the first user turn, one call in a turn, whose text is left out
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{%- if tools is not none %}{{- 'Environment: ipython\n' }}{%- endif %}"
    "{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{%- if tools is not none %}{%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{{- '<|start_header_id|>user<|end_header_id|>\n\nYou have these functions.\n\n' }}"
    "{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}{{- first + '<|eot_id|>' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in m %}{%- if not m.tool_calls | length == 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' + '{\"name\": \"' + call.name + '\", \"parameters\": ' }}"
    "{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- elif m.role == 'tool' or m.role == 'ipython' %}{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}{%- else %}{{- m.content }}"
    "{%- endif %}{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_MISTRAL_TURNS = (
    "{%- elif m.tool_calls is defined and m.tool_calls is not none %}{{- '[TOOL_CALLS][' }}"
    "{%- for c in m.tool_calls %}{{- (c.function | tojson)[:-1] }}"
    "{%- if not c.id is defined or c.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- ', \"id\": \"' + c.id + '\"}' + (', ' if not loop.last else ']' + eos_token) }}{%- endfor %}"
    "{%- elif m['role'] == 'assistant' %}{{- ANSWER + eos_token }}"
    "{%- elif m['role'] == 'tool' %}{{- '[TOOL_RESULTS]{\"content\": ' + m.content | string + ', ' }}"
    "{%- if not m.tool_call_id is defined or m.tool_call_id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- '\"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
)
MISTRAL_V3 = (  # tools before the last user turn; the system text in it, and only while no answer follows
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}{{- bos_token }}{%- for m in turns %}"
    "{%- if m['role'] == 'user' %}{%- if tools and m == users[-1] %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) }}"
    "{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}{%- if loop.last and system is defined %}"
    "{{- '[INST]' + system + '\n\n' + m['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST]' + m['content'] + '[/INST]' }}{%- endif %}"
    + _MISTRAL_TURNS.replace("ANSWER", "m['content']")
)
MISTRAL_V7 = (  # the system text has a place of its own
    "{{- bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{{- '[SYSTEM_PROMPT] ' + m['content'] + '[/SYSTEM_PROMPT]' }}"
    "{%- if tools and loop.first %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{%- elif m['role'] == 'user' %}"
    "{%- if tools and loop.first %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST] ' + m['content'] + '[/INST]' }}" + _MISTRAL_TURNS.replace("ANSWER", "' ' + m['content']")
)
GEMMA2 = (  # refuses a system turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (  # the system text stands before the first user text
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for m in turns -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- if m['role'] == 'assistant' -%}{%- set role = 'model' -%}{%- else -%}{%- set role = m['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{%- if m['content'] is string -%}{{ m['content'] | trim }}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
PHI3 = (  # the end of the sequence follows the end of the turn where no answer is asked for
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_QWEN_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}{{- SYSTEM + '\n\n' }}"
    "{{- '# Tools\n\n<tools>' }}{%- for t in tools %}{{- '\n' }}{{- t | tojson }}{%- endfor %}"
    "{{- '\n</tools>\n\nCall with <tool_call></tool_call>.<|im_end|>\n' }}"
)
_QWEN_CALLS = (
    "{%- for c in m.tool_calls %}{%- if c.function is defined %}{%- set c = c.function %}{%- endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' + c.name + \'", "arguments": \' }}{{- c.arguments | tojson }}'
    "{{- '}\n</tool_call>' }}{%- endfor %}"
)
_QWEN_RESULT = (
    "{%- elif m.role == 'tool' %}{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}"
    "{%- endfor %}"
)
QWEN25 = (  # a system text of its own where the dialogue has none
    _QWEN_TOOLS.replace(
        "SYSTEM", "(messages[0].content if messages[0].role == 'system' else 'You are Qwen.')"
    )
    + "{%- else %}{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or "
    "(m.role == 'assistant' and not m.tool_calls) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|im_start|>' + m.role }}{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    + _QWEN_CALLS
    + "{{- '<|im_end|>\n' }}"
    + _QWEN_RESULT
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN3 = (  # the reasoning of answers before the last user turn is left out
    _QWEN_TOOLS.replace("SYSTEM", "(messages[0].content if messages[0].role == 'system' else '')")
    + "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}{%- set ns = namespace(searching=true, last=messages | length - 1) %}"
    "{%- for m in messages[::-1] %}{%- set index = (messages | length - 1) - loop.index0 %}"
    "{%- if ns.searching and m.role == 'user' and m.content is string and not(m.content.startswith('<tool_response>')) %}"
    "{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.content is string %}{%- set content = m.content %}{%- else %}"
    "{%- set content = '' %}{%- endif %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>' + '\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set thought = '' %}{%- if m.reasoning_content is string %}"
    "{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}"
    "{{- '<|im_start|>' + m.role + '\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + content }}{%- endif %}"
    "{%- if m.tool_calls %}"
    + _QWEN_CALLS
    + "{%- endif %}{{- '<|im_end|>\n' }}"
    + _QWEN_RESULT
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
R1_DISTILL = (  # reasoning is left out of every answer; calls only where the content is none, arguments as text
    "{% set ns = namespace(first=false, tool=false, output_first=true, system='') %}"
    "{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.system = m['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages %}"
    "{%- if m['role'] == 'user' %}{%- set ns.tool = false -%}{{ '<｜User｜>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['content'] is none %}{%- set ns.tool = false -%}"
    "{%- for c in m['tool_calls'] %}{%- if not ns.first %}"
    "{{ '<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c['type'] + '<｜tool▁sep｜>' + c['function']['name'] "
    "+ '\n```json\n' + c['function']['arguments'] + '\n```<｜tool▁call▁end｜>' }}{%- set ns.first = true -%}{%- else %}"
    "{{ '\n<｜tool▁call▁begin｜>' + c['type'] + '<｜tool▁sep｜>' + c['function']['name'] + '\n```json\n' "
    "+ c['function']['arguments'] + '\n```<｜tool▁call▁end｜>' }}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}"
    "{%- endif %}{%- endfor %}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['content'] is not none %}{%- if ns.tool %}"
    "{{ '<｜tool▁outputs▁end｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}{%- set ns.tool = false -%}{%- else %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endif %}"
    "{%- if m['role'] == 'tool' %}{%- set ns.tool = true -%}{%- if ns.output_first %}"
    "{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}"
    "{%- set ns.output_first = false %}{%- else %}"
    "{{ '\n<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endif %}{%- endfor -%}"
    "{% if ns.tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}"
    "{% if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
_COMMAND_TURNS = (
    "{% if m['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif m['role'] == 'system' %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + m['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}"
)
_COMMAND_ANSWER = (
    "{% elif m['role'] == 'assistant' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + m['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}"
)
_COMMAND_ASK = "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
COMMAND_R = {
    "default": "{{ bos_token }}{% for m in messages %}"
    + _COMMAND_TURNS
    + _COMMAND_ANSWER
    + "{% endif %}{% endfor %}"
    + _COMMAND_ASK,
    "tool_use": (  # an instruction follows the last turn, also after an answer; a call has no end of turn
        "{{ bos_token }}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>## Available Tools\n' }}{% for t in tools %}"
        "{% if t.function is defined %}{% set t = t.function %}{% endif %}{{ '```python\ndef ' + t.name + '(' }}"
        "{% for name, one in t.parameters.properties | items %}{{ name + ': str' }}{% endfor %}"
        "{{ ') -> List[Dict]:\n    \"\"\"' + t.description + '\"\"\"\n```' }}{% endfor %}{{ '<|END_OF_TURN_TOKEN|>' }}"
        "{% for m in messages %}"
        + _COMMAND_TURNS
        + "{% elif m.role == 'assistant' and m.tool_calls is defined %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% if m.content is defined %}{{ m.content | trim }}{% endif %}"
        "{{ '\nAction:\n```json\n[\n' }}{% for c in m.tool_calls %}{% if c.function is defined %}{% set c = c.function %}"
        '{% endif %}{{ \'{"tool_name": "\' + c.name + \'", "parameters": \' }}'
        "{{ c.arguments | tojson(indent=4) | indent(8) }}{{ '}' }}{% if not loop.last %}{{ ',\n' }}{% endif %}"
        "{% endfor %}{{ '\n]```\n' }}" + _COMMAND_ANSWER + "{% elif m['role'] == 'tool' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\n' + m.content | trim + '</results><|END_OF_TURN_TOKEN|>' }}"
        "{% endif %}{% endfor %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write an action.<|END_OF_TURN_TOKEN|>' }}"
        + _COMMAND_ASK
    ),
}
TEMPLATES: dict[str, tuple[str | dict[str, str], str]] = {  # with the token that ends a sequence
    "chatml": (CHATML, "<|im_end|>"),
    "llama-2": (LLAMA2, "</s>"),
    "llama-3.1": (LLAMA31, "<|eot_id|>"),
    "mistral-v3": (MISTRAL_V3, "</s>"),
    "mistral-v7": (MISTRAL_V7, "</s>"),
    "gemma-2": (GEMMA2, "</s>"),
    "gemma-3": (GEMMA3, "</s>"),
    "phi-3": (PHI3, "</s>"),
    "qwen2.5": (QWEN25, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "r1-distill": (R1_DISTILL, "<｜end▁of▁sentence｜>"),
    "command-r": (COMMAND_R, "<|END_OF_TURN_TOKEN|>"),
}
_SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
]
_ADDED = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
]


@cache
def _engine() -> str:
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(["Is it wet in Ghent? Yes, it rains. The weather of a town.\n\n"] * 9, trainer)
    engine.add_tokens([AddedToken(token, special=False, normalized=False) for token in _ADDED])
    return engine.to_str()


def tokenizer_of(template: str | dict[str, str] | None, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer that knows the tokens of all families."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_engine()), bos_token="<s>", eos_token=eos, unk_token="<unk>"
    )
    made.chat_template = template
    return made
