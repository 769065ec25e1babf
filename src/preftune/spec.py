"""How things are written that have a name and settings: `brief`, `regex(pattern='^\\d+$')`,
`0.7*brief + 0.3*sentiment`, `dpo(beta=0.5)`, `module:Name`, `path/to/file.py:Name`.

    sum     := term (("+" | "-") term)*
    term    := [number "*"] named
    named   := NAME | NAME "(" [key "=" value ("," key "=" value)*] ")"
    value   := text without comma, quote or bracket | 'any text' | "any text" | "[" [value ("," value)*] "]"

Rewards, objectives, mixtures and the methods of a comparison are read here, and YAML becomes dataclasses here. The
same text works on the command line and in YAML. Nothing is escaped within quotes, so patterns stay as they are.
`null` and `none`, `true` and `false` are values where the setting allows them; in quotes they are text.
"""

import difflib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from preftune.errors import ConfigError, shown

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WEIGHT = re.compile(rf"([-+]?{_NUMBER})\s*\*\s*(.*)", re.DOTALL)
_EXPONENT = re.compile(r"(?:\d|\.)[eE]$")  # what stands before the sign of an exponent

Kinds = Mapping[str, type[Any]]
"""By the value of the key `kind`: the dataclass that the other keys must fit."""


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


# --- from text to terms ---


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
    """The terms of a sum, all with weights, or one term. With `blanks`, the signs between terms stand between
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


# --- YAML ---

_MOST_NODES = 100_000  # values of a document with its aliases written out
_ODD_NUMBER = re.compile(r"[-+]?(0[0-9a-fA-FxXoObB_]+|\d[\d_]*(:[0-5]?\d)+(\.\d*)?|[\d_]*_[\d_.]*)")


def odd_number(text: str) -> bool:
    """Whether YAML 1.1 reads a number that nobody means: 010 as 8, 0x10 as 16, 1:30 as 90, 4_0 as 40."""
    return _ODD_NUMBER.fullmatch(text) is not None


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without surprises: no key twice, of which the last would win; no odd numbers; no document that
    its aliases make endless.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if _num_nodes(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES:,} values with its aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if isinstance(key, str) and key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {shown(key)} stands there twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and odd_number(node.value):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"line {line}: {node.value} is no plain decimal number; quote it if it is text"
            )
        return super().construct_scalar(node)


def _num_nodes(node: Any, known: dict[int, int]) -> int:
    """Values in a document with aliases written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # an alias of something that it stands in has no end
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_num_nodes(child, known) for child in children)
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; every mistake is one sentence that names `where`."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise ConfigError(f"{where} is not valid YAML", got="nesting without an end") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a date without such a month
        got = " ".join(str(error).split())
        raise ConfigError(f"{where} is not valid YAML", got=got[:160]) from error


# --- from settings to dataclasses ---


def build(target: type[Any], settings: object, place: str, kinds: Mapping[str, Kinds] | None = None) -> Any:
    """A dataclass from a mapping of settings, from text or from YAML.

    `place` names the thing in messages, `kinds` the fields whose class a `kind` key chooses.
    """
    values = read_values(target, settings, place, kinds)
    lacking = [
        field.name
        for field in fields(target)
        if field.init
        and field.name not in values
        and field.default is MISSING
        and field.default_factory is MISSING
    ]
    if lacking:
        raise ConfigError(
            f"{_start(place)} needs a setting", got=f"no {lacking[0]}", expected=f"{lacking[0]}=..."
        )
    return target(**values)


def read_values(
    target: type[Any], settings: object, place: str, kinds: Mapping[str, Kinds] | None = None
) -> dict[str, Any]:
    """The settings as the types of a dataclass's fields; a setting that it lacks or cannot take is an error."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{place} is not a mapping", got=settings, expected="key: value lines")
    hints, known = get_type_hints(target), [field.name for field in fields(target) if field.init]
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"{_start(place)} has no such setting",
                got=str(key),
                expected=", ".join(known) or "none",
                do=suggestion(str(key), known),
            )
    values = {}
    for name, value in settings.items():
        if kinds and name in kinds:
            values[name] = _of_kind(kinds[name], value, f"{name} of {place}")
        else:
            values[name] = _value(hints[name], value, f"{name} of {place}")
    return values


def _start(place: str) -> str:
    """The place at the start of a sentence: a noun before a name in quotes is capitalized."""
    return place[:1].upper() + place[1:] if re.match(r"\w+ '", place) else place


def _of_kind(kinds: Kinds, content: object, place: str) -> Any:
    if not isinstance(content, Mapping) or "kind" not in content:
        raise ConfigError(f"{place} has no kind", got=content, expected=f"kind: {' or '.join(kinds)}")
    kind = content["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"{place} has an unknown kind",
            got=kind if isinstance(kind, str) else shown(kind),
            expected=", ".join(kinds),
            do=suggestion(str(kind), kinds),
        )
    rest = {key: value for key, value in content.items() if key != "kind"}
    return build(kinds[kind], rest, f"{place} ({kind})")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def _value(hint: Any, value: object, place: str) -> Any:
    """The value as the type wants it, or a ConfigError."""
    if get_origin(hint) in (Union, UnionType):
        return _of_union(hint, value, place)
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        if str(value) not in choices:
            raise _wrong(
                place,
                value,
                (", " if len(choices) > 2 else " or ").join(choices),
                suggestion(str(value), choices),
            )
        return choices[str(value)]
    if get_origin(hint) in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _wrong(place, value, "a list: [a, b, ...]")
        parts = [_value(get_args(hint)[0], part, f"entry {i + 1} of {place}") for i, part in enumerate(value)]
        return tuple(parts) if get_origin(hint) is tuple else parts
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, place)
    if isinstance(value, Bare):
        value = _of_bare(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise _wrong(place, value, _NAMES.get(hint, str(hint)))
    return value


def _of_union(hint: Any, value: object, place: str) -> Any:
    """The value of the first type that takes it; null first, where it is among them."""
    options = [option for option in get_args(hint) if option is not NoneType]
    is_null = value is None or (isinstance(value, Bare) and value.lower() in ("null", "none"))
    if is_null and NoneType in get_args(hint):
        return None
    for option in options[:-1]:
        try:
            return _value(option, value, place)
        except ConfigError:
            continue
    return _value(options[-1], value, place)


def _of_bare(hint: Any, text: Bare) -> object:
    """What a bare word means for a type; the text itself where it means nothing."""
    if hint is bool:
        return _WORDS.get(text.lower(), str(text))
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return str(text)
    return str(text)


def _wrong(place: str, value: object, expected: str, do: str | None = None) -> ConfigError:
    got = "nothing" if value == "" else "null" if value is None else value
    return ConfigError(f"{place} has a value that it cannot take", got=got, expected=expected, do=do)


# --- from a name to the user's own code ---


def load_attribute(name: str, what: str, example: str) -> Any:
    """What `module:attribute` or `path/to/file.py:attribute` names; every mistake is one sentence."""
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise ConfigError(f"The name of the {what} is not complete", got=repr(name), expected=f"'{example}'")
    whole = f"{what.capitalize()} {name!r}"
    module = (
        _load_file(Path(source).expanduser(), whole)
        if source.endswith(".py")
        else _load_module(source, whole)
    )
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"{whole} cannot be found: {source!r} has no attribute {attribute!r}",
            do=suggestion(attribute, vars(module)),
        ) from None


def _load_module(source: str, whole: str) -> ModuleType:
    try:
        if all(part.isidentifier() for part in source.split(".")):
            return importlib.import_module(source)
    except ModuleNotFoundError as error:
        # A module that exists may itself import one that does not: that is another mistake.
        if not f"{source}.".startswith(f"{error.name}."):
            raise _import_raised(whole, source, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _import_raised(whole, source, error) from error
    raise ConfigError(
        f"{whole} cannot be found: there is no module {source!r}",
        do="Install the module, or give the path of its file: 'path/to/file.py:NAME'",
    )


def _load_file(path: Path, whole: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{whole} cannot be found: there is no file {shown(str(path))}")
    module_name = f"preftune_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # holds for any path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[module_name]
        raise _import_raised(whole, str(path), error) from error
    return module


def _import_raised(whole: str, source: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{whole} cannot be used: importing {source!r} raised {shown(error, 200)}")
