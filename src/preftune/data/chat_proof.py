"""Proof that a chat template wrote what it was given: texts, reasoning, tool calls, tools.

A template may leave out or rewrite parts of a dialogue, by design (reasoning of earlier turns) or by mistake. What
an answer holds must be in the text that is scored; what a prompt holds must be in the prompt, except for
the reasoning of earlier answers, which a model does not see again either.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from preftune.errors import DataError, shown
from preftune.types import Message, ToolCall

_TAGS = re.compile(r"</?(?:think|thinking|thought|reasoning)>")  # templates write line breaks around them
_THOUGHT = re.compile(r"\A\s*<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL)
_DO = "Use another template (--rows.chat_template FILE or NAME), or remove what the model shall not learn"


def check_answer(turn: Message, text: str) -> None:
    """An error unless the answer's text, reasoning and tool calls are in what the template wrote for it."""
    if turn.content not in text and not all(part in text for part in _parts(turn.content)):
        missing = next(part for part in _parts(turn.content) if part not in text)
        raise DataError(
            "The chat template does not write the whole text of the answer",
            got=f"{shown(text, 60)} without {shown(missing, 60)}",
            expected="every word of the answer",
            do=_DO,
        )
    if turn.extras is not None:
        if turn.reasoning.strip() not in text:
            raise DataError(
                "The chat template does not write the reasoning of the answer",
                got=f"{shown(text, 60)} without {shown(turn.reasoning, 60)}",
                expected="the text of the field reasoning_content, thinking or reasoning",
                do=_DO,
            )
        _check_calls(turn, text, "the answer")


def check_prompt(turns: Sequence[Message], text: str, first: int = 1) -> int:
    """How many earlier answers lose their reasoning; an error unless all else is in what the template wrote."""
    thoughtless = 0
    for place, turn in enumerate(turns, start=first):
        content = turn.content.strip()
        if content not in text and _escaped(content) not in text:
            kept = _THOUGHT.sub("", content) if turn.role == "assistant" else content
            thoughtless += kept != content
            missing = next((part for part in _parts(kept) if part not in text), None)
            if missing is not None:
                raise DataError(
                    f"The chat template does not write turn {place}",
                    got=f"{turn.role}: {shown(missing, 60)} is left out",
                    expected="every word of the turn",
                    do=_DO,
                )
        thoughtless += turn.reasoning.strip() not in text
        _check_calls(turn, text, f"turn {place}")
    return thoughtless


def check_tools(tools: Sequence[Mapping[str, object]], text: str) -> None:
    """An error unless name, description and parameters of every tool are in the prompt."""
    for tool in tools:
        function = tool.get("function", tool)
        for word in _words_of_tool(function):
            if word not in text and _escaped(word) not in text and _squeezed(word) not in _squeezed(text):
                raise DataError(
                    "The chat template does not write the tools",
                    got=f"{shown(word, 60)} of a tool is left out",
                    expected="the name, description and parameters of every tool in the prompt",
                    do="Use a template for tools (--rows.chat_template FILE or NAME), or remove the column tools",
                )


def _words_of_tool(function: object) -> Iterator[str]:
    if not isinstance(function, Mapping):
        return
    yield from (str(function[key]) for key in ("name", "description") if function.get(key))
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if isinstance(properties, Mapping):
        yield from map(str, properties)


def _check_calls(turn: Message, text: str, where: str) -> None:
    for call in turn.tool_calls:
        if call.name not in text or not _has_arguments(call, text):
            missing = shown(call.name if call.name not in text else call.arguments, 60)
            raise DataError(
                f"The chat template does not write the tool calls of {where}",
                got=f"{missing} is left out",
                expected="the name and the arguments of every call",
                do=_DO,
            )


def _has_arguments(call: ToolCall, text: str) -> bool:
    """Whether the arguments are in a text: as JSON, or each name and value in a notation of the template's."""
    if call.arguments in text:
        return True
    arguments = json.loads(call.arguments)
    if json.dumps(arguments, ensure_ascii=False) in text:
        return True
    return all(any(form in text for form in _forms(leaf)) for leaf in _leaves(arguments))


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _forms(leaf: object) -> list[str]:
    if isinstance(leaf, str):
        return [leaf, _escaped(leaf), json.dumps(leaf)[1:-1]]
    return [json.dumps(leaf), str(leaf)]


def _parts(content: str) -> list[str]:
    """The texts between the tags of reasoning, stripped."""
    return [part for part in map(str.strip, _TAGS.split(content)) if part]


def _escaped(text: str) -> str:
    """As in a JSON text."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _squeezed(text: str) -> str:
    return re.sub(r"[\s#/]+", "", text)  # a description may be in lines of comments
