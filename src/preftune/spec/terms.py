"""From text to terms: names with their settings, sums and lists of them."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from preftune.errors import ConfigError, shown

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WEIGHT = re.compile(rf"([-+]?{_NUMBER})\s*\*\s*(.*)", re.DOTALL)
_EXPONENT = re.compile(r"(?:\d|\.)[eE]$")  # what precedes the sign of an exponent


class Bare(str):
    """A value that was written without quotes: what it means depends on the type of the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecTerm:
    """A name with its settings, and its weight in a sum; None where no weight was written."""

    weight: float | None = None
    name: str
    settings: Mapping[str, object]


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """What to do about a name that is not known: the nearest known one."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"Did you mean {by_lower[near[0]]}?" if near else None


def parse_term(text: str, what: str) -> SpecTerm:
    """A name with or without settings in brackets; `what` is the noun for it in messages, such as "reward"."""
    text = text.strip()
    name, bracket, inner = (part.strip() for part in text.partition("("))
    if ":" in text and not text.endswith(")"):  # a path may hold brackets
        name, bracket = text, ""
    odd = ":" not in name and re.search(r"[\s,)'\"]", name)
    if not name or odd or (bracket and not _closes(inner)):
        raise ConfigError(
            f"The {what} is not understood",
            got=shown(text) if text else "nothing",
            expected="NAME or NAME(setting=value, ...)",
        )
    return SpecTerm(name=name, settings=_settings(name, inner[:-1], what) if bracket else {})


def parse_sum(text: str, what: str, *, blanks: bool = True) -> list[SpecTerm]:
    """The terms of a sum, all with weights, or one term. With `blanks`, the signs between terms are between
    blanks: names may be paths.
    """

    def separates(i: int) -> bool:
        apart = text[i - 1 : i].isspace() and text[i + 1 : i + 2].isspace()
        if text[i] == "+" and not blanks:
            return not _EXPONENT.search(text[:i]) and bool(text[:i].strip())
        return text[i] in "+-" and apart

    pieces = _cut(text, separates)
    signs = [1.0] + [-1.0 if text[end] == "-" else 1.0 for _, end in pieces[:-1]]
    terms = [_weighted(text[start:end].strip(), what) for start, end in pieces]
    if len(terms) == 1:
        return terms
    return [
        SpecTerm(weight=sign * (1.0 if t.weight is None else t.weight), name=t.name, settings=t.settings)
        for sign, t in zip(signs, terms, strict=True)
    ]


def parse_list(text: str, what: str) -> list[tuple[str, SpecTerm]]:
    """The terms between commas, each with its own text."""
    parts = [text[start:end].strip() for start, end in _cut(text, lambda i: text[i] == ",")]
    return [(part, parse_term(part, what)) for part in parts if part]


def _closes(inner: str) -> bool:
    """Whether the bracket that was opened before closes at the end and not before."""
    return _cut(inner, lambda i: inner[i] == ")", quotes=True)[0][1] == len(inner) - 1


def _cut(text: str, separates: Callable[[int], bool], quotes: bool = False) -> list[tuple[int, int]]:
    """(start, end) of the pieces between the characters that separate, outside brackets and quotes. Quotes
    count within brackets only, unless `quotes`: a path may hold an apostrophe.
    """
    pieces, start, depth, quote = [], 0, 0, ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and (depth or quotes):
            quote = char
        elif not depth and separates(i):
            pieces.append((start, i))
            start = i + 1
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth = max(0, depth - 1)
    return [*pieces, (start, len(text))]


def _weighted(text: str, what: str) -> SpecTerm:
    found = _WEIGHT.fullmatch(text)
    if not found:
        head, star, _ = text.partition("(")[0].partition("*")
        if star:
            raise ConfigError(
                f"The weight of the {what} is not understood",
                got=shown(head.strip()) if head.strip() else "nothing",
                expected=f"number*{what}",
            )
        return parse_term(text, what)
    weight, term = float(found[1]), parse_term(found[2], what)
    if not math.isfinite(weight):
        raise ConfigError(
            f"The weight of the {what} {term.name} is out of range", got=found[1], expected="a finite number"
        )
    return SpecTerm(weight=weight, name=term.name, settings=term.settings)


def _settings(name: str, text: str, what: str) -> dict[str, object]:
    settings: dict[str, object] = {}
    for start, end in _cut(text, lambda i: text[i] == ",", quotes=True) if text.strip() else []:
        key, equals, value = (part.strip() for part in text[start:end].partition("="))
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"A setting of {what} {name!r} is not understood",
                got=shown(text[start:end].strip()),
                expected="key=value",
            )
        if key in settings:
            raise ConfigError(f"A setting of {what} {name!r} is given twice", got=key, do="Leave one out")
        settings[key] = _written(value, f"{key} of {what} {name!r}")
    return settings


def _written(text: str, place: str) -> object:
    """The text in quotes, a list, or a bare word whose meaning is not known yet."""
    if text[:1] in ("'", '"'):
        if len(text) < 2 or text[-1] != text[0] or text[0] in text[1:-1]:
            raise ConfigError(f"{place} is not understood", got=shown(text), expected="one text in quotes")
        return text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1]
        parts = _cut(inner, lambda i: inner[i] == ",", quotes=True) if inner.strip() else []
        return [_written(inner[start:end].strip(), place) for start, end in parts]
    return Bare(text)
