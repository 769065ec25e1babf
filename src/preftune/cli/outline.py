"""The settings of every command, read from the source without importing it.

Importing a command means importing the model libraries, which takes seconds. A mistyped option or a `--help`
is answered from the syntax trees of the settings' dataclasses instead, in milliseconds.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One option of a command; `name` is its full name, such as optim.learning_rate."""

    name: str
    kind: str  # the annotation as it is in the source
    default: str | None  # as it is in the source; None if the setting is required
    help: str
    interval: str = ""  # such as "(0, inf)", if the settings check it by a constant

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def works_bare(self) -> bool:
        """Whether the flag without a value means true."""
        return "bool" in self.kind.split(" | ")


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a command takes."""

    summary: str  # the first sentence of the settings' docstring
    settings: tuple[Setting, ...]
    sections: Mapping[str, str]  # section -> what it is for
    has_objective: bool


@cache
def outline_of(module: str) -> Outline | None:
    """The outline of `preftune.commands.MODULE`; None if it has no single set of settings."""
    path = ROOT / "commands" / f"{module}.py"
    kinds = _classes_read(_tree(path))
    if len(kinds) != 1:
        return None
    source = _find(path, kinds.pop())
    if source is None:
        return None
    where, kind = source
    texts, own_ranges = _help_texts(where, kind), _intervals(kind)
    settings: list[Setting] = []
    sections: dict[str, str] = {}
    for field in _own_first(where, kind):
        nested = _find(field.declared_in, field.kind) if field.kind.isidentifier() else None
        if field.name == "objective":
            text = texts.get("objective", "the loss; `preftune objectives` lists them")
            settings.append(Setting(name="objective", kind="str", default="bnf", help=text))
        elif nested is not None and _is_dataclass(nested[1]):
            sections[field.name] = texts.get(field.name, "")
            inner = _help_texts(*nested)
            ranges = _intervals(nested[1])
            settings += [
                Setting(
                    name=f"{field.name}.{one.name}",
                    kind=one.kind,
                    default=one.default,
                    help=inner.get(one.name, ""),
                    interval=ranges.get(one.name, ""),
                )
                for one in _fields(*nested)
            ]
        else:
            settings.append(
                Setting(
                    name=field.name,
                    kind=field.kind,
                    default=field.default,
                    help=texts.get(field.name, ""),
                    interval=own_ranges.get(field.name, ""),
                )
            )
    return Outline(
        summary=_summary(kind),
        settings=tuple(settings),
        sections=sections,
        has_objective=any(one.name == "objective" for one in settings),
    )


def _classes_read(tree: ast.Module) -> set[str]:
    """Names of the classes of settings that a command reads."""
    kinds = {
        call.args[0].id
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "parse_settings"
        and call.args
        and isinstance(call.args[0], ast.Name)
    }
    reads_training = any(
        isinstance(node, ast.Name) and node.id == "parse_training" for node in ast.walk(tree)
    )
    return kinds or ({"TrainConfig"} if reads_training else set())


@cache
def objective_outlines() -> Mapping[str, tuple[Setting, ...]]:
    """Name of each objective -> its hyperparameters."""
    found: dict[str, tuple[Setting, ...]] = {}
    for path in sorted((ROOT / "objectives").glob("*.py")):
        for kind in (node for node in _tree(path).body if isinstance(node, ast.ClassDef)):
            name = next((text for node in kind.body if (text := _assigned_text(node, "name"))), None)
            if name:
                texts = _help_texts(path, kind)
                found[name] = tuple(
                    Setting(
                        name=f"objective.{one.name}",
                        kind=one.kind,
                        default=one.default,
                        help=texts.get(one.name, ""),
                    )
                    for one in _fields(path, kind)
                )
    return found


@dataclass(frozen=True, kw_only=True)
class _Field:
    name: str
    kind: str
    default: str | None
    declared_in: Path


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(path: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """The class that `name` is in a file, followed through imports from this package."""
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("preftune"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    other = _file_of(node.module or "")
                    return _find(other, alias.name) if other is not None else None
    return None


def _file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


def _fields(path: Path, kind: ast.ClassDef) -> Iterator[_Field]:
    """The dataclass fields of a class, those of its bases first."""
    own = {field.name: field for field in _own_fields(path, kind)}
    for parent in _parents(path, kind):
        yield from (own.pop(field.name, field) for field in _fields(*parent))
    yield from own.values()


def _own_first(path: Path, kind: ast.ClassDef) -> list[_Field]:
    """The dataclass fields of a class, those of its bases last."""
    own = {field.name for field in _own_fields(path, kind)}
    return sorted(_fields(path, kind), key=lambda field: field.name not in own)


@cache
def _own_fields(path: Path, kind: ast.ClassDef) -> tuple[_Field, ...]:
    found = []
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = _spelled(path, node.annotation)
            if not annotation.startswith("ClassVar"):
                default = _default_of(node.value)
                found.append(_Field(name=node.target.id, kind=annotation, default=default, declared_in=path))
    return tuple(found)


def _spelled(path: Path, annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Name) and annotation.id in ("bool", "float", "int", "str"):
        return annotation.id  # as most annotations are: this is the fast way
    return ast.unparse(_Spelled(path).visit(deepcopy(annotation)))


def _parents(path: Path, kind: ast.ClassDef) -> Iterator[tuple[Path, ast.ClassDef]]:
    """The bases of a class that are dataclasses of this package."""
    for base in kind.bases:
        parent = _find(path, base.id) if isinstance(base, ast.Name) else None
        if parent is not None and _is_dataclass(parent[1]):
            yield parent


class _Spelled(ast.NodeTransformer):
    """An annotation with names of literals, such as `Target = Literal["merged", "gguf"]`, written out."""

    def __init__(self, path: Path):
        self.path = path

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _literal(self.path, node.id) or node


@cache
def _literal(path: Path, name: str) -> ast.expr | None:
    """The literal that `name` is in a file, followed through imports from this package."""
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Name) and one.id == name for one in node.targets
        ):
            return node.value if ast.unparse(node.value).startswith("Literal[") else None
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("preftune"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    other = _file_of(node.module or "")
                    return _literal(other, alias.name) if other is not None else None
    return None


def _default_of(value: ast.expr | None) -> str | None:
    """The source of a default; of a call such as `positive(0.1)`, its first argument."""
    if value is None:
        return None
    if isinstance(value, ast.Call):
        given = {one.arg: one.value for one in value.keywords}
        if "default" in given:
            return ast.unparse(given["default"])
        if "default_factory" in given:
            return {"list": "[]", "dict": "{}"}.get(ast.unparse(given["default_factory"]), "")
        return ast.unparse(value.args[0]) if value.args else ""
    return ast.unparse(value)


def _intervals(kind: ast.ClassDef) -> dict[str, str]:
    """Field -> the interval of `check_range(self, "(0, inf)", "field")` in the class."""
    found: dict[str, str] = {}
    for node in ast.walk(kind):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check_range":
            texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
            names = [one for one in texts if isinstance(one, str)]
            found |= {name: names[0] for name in names[1:]}
    return found


def _is_dataclass(kind: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(one) for one in kind.decorator_list)


def _assigned_text(node: ast.stmt, name: str) -> str | None:
    """The text that a statement of the form `name = "text"` assigns."""
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    elif isinstance(node, ast.Assign):
        targets = node.targets
    else:
        return None
    value = node.value
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return value.value if is_text and [ast.unparse(one) for one in targets] == [name] else None  # type: ignore


def _summary(kind: ast.ClassDef) -> str:
    text = ast.get_docstring(kind) or ""
    return " ".join(text.split("\n\n")[0].split())


def _help_texts(path: Path, kind: ast.ClassDef) -> dict[str, str]:
    """Argument -> description, from the `Args:` of the docstring, and of those of its bases."""
    _, _, text = (ast.get_docstring(kind) or "").partition("Args:\n")
    texts: dict[str, str] = {}
    for parent in _parents(path, kind):
        texts |= _help_texts(*parent)
    name = ""
    for line in text.split("\n"):
        if found := re.match(r"    (\w+): (.*)", line):
            name = found[1]
            texts[name] = found[2]
        elif name and line.startswith("        "):
            texts[name] += " " + line.strip()
        elif line.strip() and not line.startswith(" "):
            break
    return texts
