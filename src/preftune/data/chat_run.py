"""One run of a chat template: turns, tools and variables as the template expects them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from preftune.data.chat_environment import render_limited, variables_of
from preftune.errors import DataError
from preftune.types import Message, Record, ToolCall, TurnExtras

_PROBE_NAME, _PROBE_KEY, _PROBE_VALUE, _PROBE_ID = "qz7name", "qz7key", "Qz7 value", "Qz7Qz7Qz7"
_OURS = ("messages", "tools", "add_generation_prompt")  # variables that rows cannot set


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatContext:
    """What a template gets in addition to the turns: JSON texts, empty where there is nothing."""

    tools: str = ""
    kwargs: str = ""

    @classmethod
    def of(cls, record: Record) -> "ChatContext":
        if record.tools or record.chat_template_kwargs:
            return cls(tools=record.tools, kwargs=record.chat_template_kwargs)
        return PLAIN


PLAIN = ChatContext()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """How a template wants tool calls: templates differ, and write others wrongly or not at all."""

    parsed: bool = True  # arguments as an object, not as JSON text
    content: str | None = ""  # of a turn that only calls tools
    given: bool = False  # whether that content is given at all


_SHAPES = [
    CallShape(parsed=parsed, content=content, given=given)
    for content, given in (("", False), (None, True), ("", True))
    for parsed in (True, False)
]


def is_usual(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer renders its template in the usual way."""
    return type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template


def run_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation_prompt: bool,
    context: ChatContext = PLAIN,
    shape: CallShape = _SHAPES[0],
    defaults: Mapping[str, object] | None = None,
) -> str:
    """What the template writes for some turns; a DataError if it refuses them."""
    turns = [_turn(message, shape) for message in messages]
    tools = _loaded(context.tools) if context.tools else None
    kwargs = {**(defaults or {}), **(_loaded(context.kwargs) if context.kwargs else {})}
    try:
        if not is_usual(tokenizer):
            return str(
                tokenizer.apply_chat_template(
                    turns,  # type: ignore
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    tools=tools,
                    **kwargs,  # type: ignore
                )
            )
        template = tokenizer.get_chat_template(None, tools)
        variables = {
            **tokenizer.special_tokens_map,
            "documents": None,
            **kwargs,
            "messages": turns,
            "tools": tools,
            "add_generation_prompt": generation_prompt,
        }
        size = sum([len(message.content) for message in messages])
        if context.tools or any([message.extras for message in messages]):
            size += len(context.tools) + len(repr(turns))
        return render_limited(template, variables, size)
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            "The chat template refuses the dialogue",
            got=f"{type(error).__name__}: {error} (turns: {roles})",
            expected="turns that the template allows",
        ) from error


def check_variables(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, object], name: str) -> None:
    """An error for a variable that the template does not read, or that is not the user's to set."""
    try:
        known = variables_of(tokenizer.get_chat_template(None, None))
    except (TemplateError, ValueError):
        known = variables_of(tokenizer.get_chat_template(None, [{}]))
    for variable in kwargs:
        if variable in _OURS or variable not in known:
            why = "is set by preftune" if variable in _OURS else "is not read by the chat template"
            usual = {*_OURS, "documents", "raise_exception", "strftime_now", "namespace", "range", "dict"}
            free = sorted(known - usual - set(tokenizer.special_tokens_map))
            raise DataError(
                f"The variable {variable} in {name} {why}",
                got=json.dumps({variable: kwargs[variable]}, ensure_ascii=False),
                expected="one of " + ", ".join(free) if free else "no variables: the template reads none",
                do="Remove it, or use another template (--rows.chat_template)",
            )


def reads_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes descriptions of tools."""
    try:
        return "tools" in variables_of(tokenizer.get_chat_template(None, [{}]))
    except (TemplateError, ValueError):  # no template
        return False


def check_row_variables(tokenizer: PreTrainedTokenizerBase, kwargs: str) -> None:
    """The same of a row's column chat_template_kwargs."""
    check_variables(tokenizer, _loaded(kwargs), "chat_template_kwargs")


@lru_cache(maxsize=256)
def _loaded(text: str):
    return json.loads(text)


def _turn(message: Message, shape: CallShape) -> dict[str, object]:
    extras = message.extras
    if extras is None:
        return {"role": message.role, "content": message.content}
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if extras.tool_calls:
        if not message.content:
            turn = {"role": message.role, **({"content": shape.content} if shape.given else {})}
        turn["tool_calls"] = [_call(call, shape) for call in extras.tool_calls]
    if extras.reasoning:  # the names that templates read
        turn |= {"reasoning_content": extras.reasoning, "thinking": extras.reasoning}
    turn |= {"name": extras.name} if extras.name else {}
    return turn | ({"tool_call_id": extras.tool_call_id} if extras.tool_call_id else {})


def _call(call: ToolCall, shape: CallShape) -> dict[str, object]:
    arguments = _loaded(call.arguments) if shape.parsed else call.arguments
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})  # type: ignore


def call_shape(tokenizer: PreTrainedTokenizerBase, defaults: Mapping[str, object]) -> CallShape:
    """The shape of tool calls that the template writes rightly; the first where it writes none."""
    template = tokenizer.chat_template
    if not template or "tool_calls" not in str(template):
        return CallShape(content="", given=True)
    for shape in _SHAPES:
        try:
            text = run_template(tokenizer, probe_call(), False, defaults=defaults, shape=shape)
        except DataError:
            continue
        if _PROBE_NAME in text and f'"{_PROBE_VALUE}"' in text and f'"{_PROBE_KEY}"' in text:
            return shape
    return next((shape for shape in _SHAPES if _writes_probe(tokenizer, shape, defaults)), _SHAPES[0])


def _writes_probe(
    tokenizer: PreTrainedTokenizerBase, shape: CallShape, defaults: Mapping[str, object]
) -> bool:
    """Whether the template writes a call in a separate notation."""
    try:
        text = run_template(tokenizer, probe_call(), False, defaults=defaults, shape=shape)
    except DataError:
        return False
    return all(part in text for part in (_PROBE_NAME, _PROBE_VALUE, _PROBE_KEY))


def probe_call() -> list[Message]:
    """A dialogue that ends with a tool call."""
    arguments = json.dumps({_PROBE_KEY: _PROBE_VALUE})
    call = ToolCall(name=_PROBE_NAME, arguments=arguments, id=_PROBE_ID)
    return [
        Message(role="user", content="a"),
        Message(role="assistant", content="", extras=TurnExtras(tool_calls=(call,))),
    ]
