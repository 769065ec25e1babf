"""How a reward is written: `brief`, `regex(pattern='^\\d+$')`, `0.7*brief + 0.3*sentiment`,
`module:function`, `model:FOLDER`.

    sum     := term ((" + " | " - ") term)*
    term    := [number "*"] reward
    reward  := NAME | NAME "(" [key "=" value ("," key "=" value)*] ")"
    value   := text without comma, quote or bracket | 'anything else' | "anything else"

The same text works on the command line and in YAML. Nothing is escaped within quotes, so patterns stay as
they are.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from preftune.errors import ConfigError, shown

_WEIGHT = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecTerm:
    """One reward of a sum; no weight where none was written. Values are still text."""

    weight: float | None
    name: str
    settings: Mapping[str, str]


def parse_spec(text: str) -> list[SpecTerm]:
    """The terms of a sum, or one term."""
    if not text.strip():
        raise ConfigError("The reward's name is empty", expected="a built-in reward or 'module:function'")
    pieces = _cut(
        text, lambda i: text[i] in "+-" and text[i - 1 : i].isspace() and text[i + 1 : i + 2].isspace()
    )
    signs = [1.0] + [-1.0 if text[end] == "-" else 1.0 for _, end in pieces[:-1]]
    terms = [_term(text[start:end].strip(), text) for start, end in pieces]
    if len(terms) == 1:
        return terms
    return [
        SpecTerm(
            weight=sign * (1.0 if term.weight is None else term.weight),
            name=term.name,
            settings=term.settings,
        )
        for sign, term in zip(signs, terms, strict=True)
    ]


def _cut(text: str, separates: Callable[[int], bool], quotes: bool = False) -> list[tuple[int, int]]:
    """(start, end) of the pieces between the characters that separate, outside brackets and quotes. Quotes
    count within brackets only, unless said: a path may hold an apostrophe.
    """
    pieces, start, depth, quote = [], 0, 0, ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and (depth or quotes):
            quote = char
        elif char in "()":
            depth = max(0, depth + (1 if char == "(" else -1))
        elif not depth and separates(i):
            pieces.append((start, i))
            start = i + 1
    return [*pieces, (start, len(text))]


def _term(text: str, whole: str) -> SpecTerm:
    found = _WEIGHT.fullmatch(text)
    weight, text = (float(found[1]), found[2]) if found else (None, text)
    if weight is not None and not math.isfinite(weight):
        raise ConfigError(
            "The weight of a reward is out of range", got=shown(whole), expected="a finite number"
        )
    name, bracket, inner = text.partition("(") if text.endswith(")") else (text, "", "")
    if not name.strip():
        raise ConfigError("A reward has no name", got=shown(whole), expected="such as 0.7*brief + 0.3*ended")
    return SpecTerm(
        weight=weight, name=name.strip(), settings=_settings(name.strip(), inner[:-1]) if bracket else {}
    )


def _settings(name: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for start, end in _cut(text, lambda i: text[i] == ",", quotes=True) if text.strip() else []:
        key, equals, value = (part.strip() for part in text[start:end].partition("="))
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"A setting of reward {name!r} is not understood",
                got=shown(text[start:end].strip()),
                expected="key=value",
            )
        if key in found:
            raise ConfigError(f"A setting of reward {name!r} is given twice", got=key, do="Leave one out")
        if value[:1] in ("'", '"'):
            if len(value) < 2 or value[-1] != value[0] or value[0] in value[1:-1]:
                raise ConfigError(
                    f"{key} of reward {name!r} is not understood",
                    got=shown(value),
                    expected="one text in quotes",
                )
            value = value[1:-1]
        found[key] = value
    return found


def made(kind: type[Any], name: str, settings: Mapping[str, str]) -> Any:
    """An instance of a dataclass from settings as text."""
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"Reward {name!r} has no such setting",
                got=key,
                expected=", ".join(known) or "none",
                do=f"Perhaps you meant {near[0]!r}" if near else None,
            )
    required = [
        key for key, field in known.items() if field.default is MISSING and field.default_factory is MISSING
    ]
    if lacking := [key for key in required if key not in settings]:
        raise ConfigError(
            f"Reward {name!r} needs a setting",
            got="no " + ", ".join(lacking),
            expected=f"{name}({', '.join(f'{key}=...' for key in required)})",
        )
    return kind(
        **{key: _value(text, hints[key], f"{key} of reward {name!r}") for key, text in settings.items()}
    )


def _value(text: str, hint: Any, what: str) -> Any:
    options = [option for option in get_args(hint) if option is not NoneType]
    if NoneType in get_args(hint):
        return None if text.lower() in ("none", "null") else _value(text, options[0], what)
    if get_origin(hint) is Literal:
        if text not in options:
            raise ConfigError(f"{what} is unknown", got=text, expected=" or ".join(options))
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{what} has a value that it cannot take", got=text, expected="true or false")
        return text.lower() == "true"
    if hint is str:
        return text
    try:
        return hint(text)
    except ValueError:
        expected = "a whole number" if hint is int else "a number"
        raise ConfigError(f"{what} has a value that it cannot take", got=text, expected=expected) from None
