"""What turns and rows hold in addition to texts: reasoning, tool calls, weights, tools, template variables."""

import json
from collections.abc import Mapping

from preftune.errors import DataError, shown
from preftune.types import ToolCall, TurnExtras

REASONING = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")
TURN_WEIGHTS = ("weight", "train", "loss", "loss_mask")  # of OpenAI, axolotl and ms-swift
EXTRAS = (*REASONING, "tool_calls", "function_call", "name", "tool_call_id", *TURN_WEIGHTS)
"""Fields of a turn that are rendered in addition to its role and content."""
RENDERED = ("tools", "chat_template_kwargs")
"""Columns of a row that go to the chat template."""


def turn_extras(turn: Mapping[str, object], name: str) -> TurnExtras | None:
    """The extras of a turn; None if it has none."""
    given = {key: turn[key] for key in EXTRAS if key in turn and turn[key] not in (None, "", [], {})}
    if not given:
        return None
    reasoning = list(dict.fromkeys(_text(given[key], f"{name}.{key}") for key in REASONING if key in given))
    if len(reasoning) > 1:
        raise DataError(
            f"The turn {name} has two different reasoning texts",
            got=" and ".join(shown(text, 40) for text in reasoning),
            expected=f"one of {', '.join(REASONING)}",
        )
    calls = given.get("tool_calls", [])
    if not isinstance(calls, list):
        raise DataError(
            f"The field {name}.tool_calls is not a list", got=shown(calls), expected="a list of tool calls"
        )
    if "function_call" in given:
        calls = [*calls, given["function_call"]]
    weights = {key: as_weight(given[key], f"{name}.{key}") for key in TURN_WEIGHTS if key in given}
    if len(set(weights.values())) > 1:
        raise DataError(
            f"The turn {name} has two different weights",
            got=", ".join(f"{key} {weight:g}" for key, weight in weights.items()),
            expected="one weight",
        )
    return TurnExtras(
        reasoning=reasoning[0] if reasoning else "",
        tool_calls=tuple(as_tool_call(call, f"{name}.tool_calls[{k}]") for k, call in enumerate(calls)),
        name=_text(given.get("name", ""), f"{name}.name"),
        tool_call_id=_text(given.get("tool_call_id", ""), f"{name}.tool_call_id"),
        weight=next(iter(weights.values()), None),
    )


def with_joined_parts(turn: Mapping[str, object], key: str, name: str) -> dict[str, object]:
    """The turn with the parts of its content as one text, and with the reasoning among them in its own field."""
    parts = turn[key]
    assert isinstance(parts, list)
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS and "text" in part:
            texts.append(_text(part["text"], f"{name}.{key}"))
        elif kind in REASONING:
            thought = part.get(kind, part.get("text"))
            if isinstance(thought, list):  # parts again, as Mistral writes them
                thought = "".join(_text(inner.get("text"), f"{name}.{key}") for inner in thought)
            thoughts.append(_text(thought, f"{name}.{key}"))
        else:
            raise DataError(
                f"The field {name}.{key} holds a part that is not text",
                got=shown(part),
                expected='{"type": "text", "text": ...}',
                do="Only text is trained on: leave out rows with images, audio or files",
            )
    joined = {**turn, key: "".join(texts)}
    if thoughts:
        joined[next((field for field in REASONING if not turn.get(field)), REASONING[0])] = "\n".join(
            thoughts
        )
    return joined


def as_weight(value: object, name: str) -> float:
    """0 or 1: whether a turn is scored."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return float(value)
    raise DataError(
        f"The weight {name} is not supported",
        got=shown(value),
        expected="0 (the turn is not scored) or 1 (the turn is scored)",
        do="Round the weight, or remove it",
    )


def as_tool_call(value: object, name: str) -> ToolCall:
    """A call {function: {name, arguments}, id} or {name, arguments}; arguments are an object or its JSON text."""
    call = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or not call["name"]:
        raise DataError(
            f"The tool call {name} has no function name",
            got=shown(value),
            expected='{"function": {"name": ..., "arguments": {...}}}',
        )
    given = call.get("arguments", call.get("parameters"))
    identity = value.get("id") if isinstance(value, Mapping) else None
    return ToolCall(
        name=_text(call["name"], f"{name}.name"),
        arguments=_json_object(given, f"{name}.arguments"),
        id=_text(identity or "", f"{name}.id"),
    )


def as_tools(value: object, name: str) -> str:
    """The JSON text of a list of tools; empty where there are none. JSON text is read too."""
    tools = _parsed(value, name)
    if tools is None or tools == [] or tools == {}:
        return ""
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, list):
        raise DataError(f"The field {name} is not a list of tools", got=shown(value), expected="a list")
    for k, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"The tool {name}[{k}] has no name",
                got=shown(tool),
                expected='{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}',
            )
    whole = [
        tool if "function" in tool else {"type": "function", "function": dict(tool)}  # type: ignore
        for tool in map(_without_nulls, tools)
    ]
    return _dumped(whole, name)


def as_template_kwargs(value: object, name: str) -> str:
    """The JSON text of an object of variables for the chat template; empty where there are none."""
    given = _parsed(value, name)
    if given is None or given == {}:
        return ""
    if not isinstance(given, Mapping):
        raise DataError(
            f"The field {name} is not an object",
            got=shown(value),
            expected='variables of the chat template such as {"enable_thinking": false}',
        )
    given = {key: item for key, item in given.items() if item is not None}  # a table fills all keys
    return _dumped(given, name) if given else ""


def _parsed(value: object, name: str) -> object:
    """The value, or what its JSON text states; None for blank text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The field {name} is not valid JSON", got=shown(value), expected="JSON") from error


def _json_object(value: object, name: str) -> str:
    parsed = {} if value is None else _parsed(value, name)
    if not isinstance(parsed, Mapping):
        if parsed is None:
            return "{}"
        raise DataError(f"The field {name} is not an object", got=shown(value), expected="an object")
    return value if isinstance(value, str) else _dumped(_without_nulls(parsed), name)


def _without_nulls(value: object) -> object:
    """Tables (Parquet, Arrow) fill every key of nested objects with null: such keys hold nothing."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _dumped(value: object, name: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"The field {name} cannot be written as JSON", got=f"{error}", expected="plain JSON values"
        ) from error
    return text


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"The field {name} has the wrong type", got=shown(value), expected="text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"The field {name} holds half of a surrogate pair", got=shown(value), expected="valid Unicode"
        ) from error
    return value
