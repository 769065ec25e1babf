"""From flags and YAML to the settings of a verb. Flags and YAML are the same thing; a key that is not known
is an error.

Every setting has a full name, such as `optim.learning_rate`. Its last part alone (`learning_rate`) works
wherever no other setting of the verb has that name at the top. An objective is named by `objective` and its
hyperparameters by `objective.beta`. The names that the ecosystem uses work where they mean the same thing
here.
"""

import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from preftune.cli.names import ALIASES, unknown_setting
from preftune.errors import ConfigError, shown
from preftune.objectives import OBJECTIVES, resolve_objective, written_name
from preftune.spec import Bare, SpecTerm, parse_term, read_values
from preftune.spec.schema import migrated
from preftune.spec.strict_yaml import odd_number, parse_yaml

T = TypeVar("T")

OBJECTIVE = "objective.name"


def parse_settings(
    kind: type[T], arguments: Sequence[str], prog: str, description: str = "", positional: str | None = None
) -> T:
    """The settings of a command, validated. `positional` may be given as a bare word before the first flag. The
    description is by default the summary of the settings' docstring.
    """
    names = _names(kind)
    tokens = _bracketed(kind, _spell_out(_expand(arguments, names, positional)))
    _refuse_odd_numbers(kind, tokens)
    sources = [_read_yaml(path, names) for path in _yaml_paths(tokens)]
    for path, source in zip(_yaml_paths(tokens), sources, strict=True):
        _refuse_nulls(path, source, _needs_value(kind))
    parser = ArgumentParser(
        prog=prog,
        description=description or (kind.__doc__ or "").split("\n\n")[0],
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with settings; flags win over it")
    objective = _objective_class(kind, tokens, sources)
    parser.add_class_arguments(kind, skip={"objective"} if objective else set())
    if objective:
        parser.add_argument(
            "--objective.name",
            type=str,
            default=written_name(objective),
            help="the loss: "
            + ", ".join(OBJECTIVES)
            + ", or module:Class or path/to/file.py:Class; also: --objective NAME or 'NAME(setting=value, ...)'",
        )
        parser.add_class_arguments(objective, "objective", instantiate=False)
    for source in sources:
        place = tokens.index("--config")
        tokens[place : place + 2] = [f"--config={yaml.safe_dump(source)}"]
    try:
        parsed = parser.parse_args(tokens)
        ready = parser.instantiate(parsed).as_dict()
    except ConfigError:
        raise
    except (ArgumentError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _told(error, prog, names) from error
    ready.pop("config", None)
    _refuse_objects(kind, ready)
    if objective:
        given = {k: v for k, v in parsed.objective.as_dict().items() if k != "name"}
        hints = get_type_hints(objective)
        for name, value in given.items():
            if value is None and not _takes_none(hints[name]):
                raise ConfigError(
                    f"Invalid value for objective.{name}", got="null", do="Leave it out for the default"
                )
        ready["objective"] = objective(**given)
    return kind(**ready)


def _refuse_odd_numbers(kind: type[Any], tokens: Sequence[str]) -> None:
    """The parser reads values as YAML 1.1, which takes 010 for 8 and 1:30 for 90."""
    numbers = _numbers(kind)
    for place, token in enumerate(tokens):
        name, equals, value = token[2:].partition("=") if token.startswith("--") else ("", "", "")
        value = value if equals else "".join(tokens[place + 1 : place + 2])
        if name in numbers and odd_number(value.strip()):
            raise ConfigError(
                f"Invalid value for {name}", got=shown_value(value), expected="a plain decimal number"
            )


def _numbers(kind: type[Any]) -> frozenset[str]:
    """Full names of the settings that are numbers."""
    hints, found = get_type_hints(kind), set()
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            found |= {f"{field.name}.{name}" for name in _numbers(hint)}  # type: ignore[arg-type]
        elif {hint, *get_args(hint)} & {int, float} and str not in get_args(hint):
            found.add(field.name)
    return frozenset(found)


def _yaml_paths(tokens: Sequence[str]) -> list[str]:
    return [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == "--config"]


def settings_from_run(kind: type[T], path: Path) -> T:
    """The settings that a run folder's config.yaml holds."""
    return parse_settings(kind, ["--config", str(path / "config.yaml")], prog="preftune", description="")


def _names(kind: Any) -> dict[str, str]:
    """Short and full names of all settings -> full names. A name at the top wins over the same name further
    down.
    """
    hints = get_type_hints(kind)
    full: list[str] = []
    for field in fields(kind):
        section = hints[field.name]
        if field.name == "objective":
            full.append("objective.name")
        elif is_dataclass(section):
            full += [f"{field.name}.{inner.name}" for inner in fields(section)]
        else:
            full.append(field.name)
    leaves = [name.rsplit(".", 1)[-1] for name in full]
    short = {
        leaf: name
        for leaf, name in zip(leaves, full, strict=True)
        if leaves.count(leaf) == 1 and leaf != "name"
    }
    names = short | {name: name for name in full}
    if "objective.name" in full:
        parameters = {f"objective.{f.name}" for kind_ in OBJECTIVES.values() for f in fields(kind_)}  # type: ignore[arg-type]
        names |= {"objective": OBJECTIVE} | {name: name for name in parameters}
    known = set(names.values())
    return names | {alias: name for alias, name in ALIASES.items() if name in known and alias not in names}


def _expand(arguments: Sequence[str], names: Mapping[str, str], positional: str | None) -> list[str]:
    """Bare words to their flag, short names to full names, hyphens to underscores, and `true` after a bare
    switch.
    """
    words = list(arguments)
    tokens: list[str] = []
    if positional and words and not words[0].startswith("-"):
        tokens += [f"--{names[positional]}", words.pop(0)]
    for word in words:
        if not word.startswith("--"):
            tokens.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        tokens.append(f"--{names.get(name, name)}{equals}{value}")
    switches = {f"--{names[name]}" for name in ("json", "overwrite") if name in names}
    out: list[str] = []
    for i, token in enumerate(tokens):
        out.append(token)
        following = tokens[i + 1] if i + 1 < len(tokens) else "--"
        if token in switches and following.lower() not in ("true", "false"):
            out.append("true")
    return out


def shown_value(text: object, limit: int = 160) -> str:
    """A value as it was written, cut to a length that a sentence bears."""
    plain = str(text)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def _needs_value(kind: Any) -> frozenset[str]:
    """Full names of the settings that null is no value of."""
    hints = get_type_hints(kind)
    found = set()
    for field in fields(kind):
        section = hints[field.name]
        if is_dataclass(section):
            inner = get_type_hints(section)
            found |= {
                f"{field.name}.{one.name}" for one in fields(section) if not _takes_none(inner[one.name])
            }
        elif not _takes_none(section):
            found.add(field.name)
    return frozenset(found)


def _refuse_objects(kind: Any, ready: Mapping[str, Any]) -> None:
    """Settings that a program may give as an object are text here; the parser takes any value for them."""
    for name, hint in get_type_hints(kind).items():
        value = ready.get(name)
        if {str, Any} <= set(get_args(hint)) and value is not None and not isinstance(value, str):
            expected = "text or null" if _takes_none(hint) else "text"
            raise ConfigError(f"Invalid value for {name}", got=shown_value(value), expected=expected)


def _takes_none(hint: Any) -> bool:
    return hint is Any or NoneType in get_args(hint)


def _refuse_nulls(path: str, tree: Mapping[str, Any], needs_value: frozenset[str], prefix: str = "") -> None:
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in needs_value:
            _refuse_nulls(path, value, needs_value, f"{prefix}{key}.")
        elif value is None and f"{prefix}{key}" in needs_value:
            raise ConfigError(
                f"Invalid value for {prefix}{key} in {path}",
                got="null",
                do="Leave the line out for the default",
            )


def _read_yaml(path: str, names: Mapping[str, str]) -> dict[str, Any]:
    """A YAML file's settings under their full names, nested. A run's own record of its environment is left
    out.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"Cannot read the settings in {path}", got=str(error), expected="a YAML file"
        ) from error
    content = parse_yaml(text, path)
    odd = [key for key in content if not isinstance(key, str)] if isinstance(content, dict) else None
    if odd is None or odd:
        got = f"the key {shown(odd[0])}" if odd else type(content).__name__
        raise ConfigError(f"{path} holds no settings", got=got, expected="key: value lines")
    content, notes = migrated(content, path)
    for note in notes:
        print(f"note: {path}: {note}", file=sys.stderr)
    content.pop("environment", None)
    sections = {name.partition(".")[0] for name in names.values() if "." in name}
    tree: dict[str, Any] = {}
    for key, value in content.items():
        if key in sections and isinstance(value, dict):
            for inner, leaf in value.items():
                _insert(tree, f"{key}.{inner}", leaf, names)
        elif key in sections and key not in names:
            raise ConfigError(
                f"{key} is a section of settings", got=shown(value), expected="key: value lines under it"
            )
        else:
            _insert(tree, key, value, names)
    objective = tree.get("objective")
    if isinstance(objective, dict) and "(" in str(objective.get("name")):
        term = _objective_term(str(objective.pop("name")))
        for key, value in {"name": term.name, **term.settings}.items():
            value = yaml.safe_load(_plain(value)) if isinstance(value, Bare) and key != "name" else value
            _insert(tree, f"objective.{key}", value, names)
    return tree


def _objective_term(text: str) -> SpecTerm:
    """An objective with settings in brackets. Each value must have the type of its setting; whether they fit each
    other is checked later, with those that other flags give.
    """
    term = parse_term(text, "objective")
    read_values(resolve_objective(term.name), term.settings, f"objective {term.name!r}")
    return term


def _spell_out(tokens: Sequence[str]) -> list[str]:
    """`--objective.name "dpo(beta=0.5)"` as the flags that it stands for."""
    out: list[str] = []
    for token in tokens:
        before = out[-1] if out else ""
        flag, equals, value = token.partition("=") if token.startswith(f"--{OBJECTIVE}=") else ("", "", token)
        if "(" not in value or not (flag or before == f"--{OBJECTIVE}"):
            out.append(token)
            continue
        term = _objective_term(value)
        out.append(f"{flag}{equals}{term.name}")
        out += [f"--objective.{key}={_plain(setting)}" for key, setting in term.settings.items()]
    return out


def _bracketed(kind: Any, tokens: Sequence[str]) -> list[str]:
    """`--rates 1e-6,1e-5` and `--stop END` as the lists that they stand for. Commas separate numbers only: a text may
    contain one, so several texts need brackets.
    """
    elements = {
        f"--{name}": get_args(hint)[0] for name, hint in _hints(kind).items() if get_origin(hint) is list
    }
    out: list[str] = []
    for token in tokens:
        flag, equals, value = token.partition("=")
        if not equals and out and out[-1] in elements:
            flag, value, prefix = out[-1], token, ""
        else:
            prefix = f"{flag}="
        element = elements.get(flag)
        if element is None or (prefix and not equals) or value.lstrip().startswith("["):
            out.append(token)
        elif element is str:
            out.append(token if "," in value else prefix + json.dumps([value]))
        else:
            out.append(f"{prefix}[{value}]")
    return out


def _hints(kind: Any) -> dict[str, Any]:
    """Full name of each setting -> its type; that of `list[X] | None` is list[X]."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        inner = get_type_hints(hint) if is_dataclass(hint) else {"": hint}
        for leaf, leaf_hint in inner.items():
            options = [one for one in get_args(leaf_hint) if one is not NoneType]
            optional = NoneType in get_args(leaf_hint) and len(options) == 1
            hints[f"{name}.{leaf}".rstrip(".")] = options[0] if optional else leaf_hint
    return hints


def _plain(setting: Any) -> Any:
    """A setting as the parser reads it: a bare `none` is null, as everywhere."""
    return "null" if isinstance(setting, Bare) and setting.lower() == "none" else setting


def _insert(tree: dict[str, Any], key: str, value: Any, names: Mapping[str, str]) -> None:
    """A setting under its full name; one that is not known or is there twice is an error."""
    full = names.get(key.replace("-", "_"))
    if full is None and key.startswith("objective.") and OBJECTIVE in names.values():
        full = key  # of a class that is not in the table: the parser knows whether it has that hyperparameter
    if full is None:
        raise unknown_setting(key, names, flag=False)
    section, _, leaf = full.rpartition(".")
    place = tree.setdefault(section, {}) if section else tree
    if leaf in place:
        raise ConfigError(
            f"{full} is given twice", got=f"{shown(place[leaf])} and {shown(value)}", do="Leave one out"
        )
    place[leaf] = value


def _objective_class(
    kind: Any, tokens: Sequence[str], sources: Sequence[Mapping[str, Any]]
) -> type[Any] | None:
    """The objective that flags or files name, the last one winning; None for verbs without one."""
    default = next((field for field in fields(kind) if field.name == "objective"), None)
    if default is None:
        return None
    named = [source["objective"]["name"] for source in sources if "name" in source.get("objective", {})]
    flag = f"--{OBJECTIVE}"
    for i, token in enumerate(tokens):
        if token == flag and i + 1 < len(tokens):
            named.append(tokens[i + 1])
        elif token.startswith(flag + "="):
            named.append(token.partition("=")[2])
    name = named[-1] if named else default.default_factory.name  # type: ignore[union-attr]
    return resolve_objective(name)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "list": "a list: [a, b]",
    "dict": "a mapping: {a: b}",
    "NoneType": "null",
}


def _told(error: Exception, prog: str, names: Mapping[str, str]) -> ConfigError:
    """The parser's complaint as one sentence, with what to do."""
    text = " ".join(str(error).split())
    if found := re.search(r"unrecognized arguments: --([^\s=]+)", text):
        return unknown_setting(found[1], names, flag=True)
    if found := re.search(r"Group '(.+?)' does not accept option '(.+?)'", text):
        return unknown_setting(f"{found[1]}.{found[2]}", names, flag=False)
    if found := re.search(r"unrecognized arguments: (.*)", text):
        return ConfigError(
            f"Unexpected argument {shown(found[1])}", expected="--option VALUE", do=f"See {prog} --help"
        )
    if found := re.search(r'key "([\w.]+)": (.*?)(?:Given value type.*)?(?:Got|Given) value: (.*)', text):
        choices = re.search(r"Literal\[(.*?)\]", found[2])
        kinds = dict.fromkeys(re.findall(r"<class '(\w+)'>", found[2]))
        expected = (
            choices[1].replace("'", "")
            if choices
            else " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        )
        return ConfigError(
            f"Invalid value for {found[1]}", got=shown_value(found[3]), expected=expected or None
        )
    if found := re.search(r"argument --([\w.]+): expected one argument", text):
        return ConfigError(f"{found[1]} has no value", expected=f"--{found[1]} VALUE")
    if "required" in text.lower():
        return ConfigError("A setting is missing", got=text, do=f"See {prog} --help")
    return ConfigError("Invalid value", got=shown_value(text), do=f"See {prog} --help")
