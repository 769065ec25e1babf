"""Names that a command looks up in files: problems, experiments, pages, objectives of a figure, the user's own code.
They are checked before the libraries are imported.
"""

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from preftune.cli.names import nearest
from preftune.cli.outline import ROOT, objective_outlines
from preftune.errors import ConfigError, shown

LAB_ACTION_NAMES = ("list", "show", "run", "all", "tune")
OWN_CODE = {"objective": "objective", "reward": "reward", "eval_reward": "reward", "judge": "judge"}
"""Setting that takes `module:attribute` -> the noun for it in messages."""
_NO_CODE = ("model:", "python:")  # a folder of a reward model, and an object that a program passed


def check_bare_names(command: str, words: Sequence[str]) -> None:
    """Raises for an unknown name among the words that stand before the first flag."""
    bare = list(takewhile(lambda word: not word.startswith("-"), words))
    if command == "curves":
        for name in bare:
            check_objective(name)
    elif command == "lab" and bare:
        _check_lab(bare[0], bare[1:])


def check_given_names(command: str, given: Mapping[str, str]) -> None:
    """Raises for an unknown name among the values of flags."""
    if "problem" in given:
        _check_problem(given["problem"])
    if command == "docs" and "name" in given:
        page_named(given["name"], page_paths())
    if command == "import-config" and "file" in given:
        _check_config(given["file"])
    for flag, what in OWN_CODE.items():
        name = given.get(flag, "")
        if re.fullmatch(r"[\w./\\~-]+:\w+", name) and not name.startswith(_NO_CODE):
            _check_own_code(name, what)


def check_objective(name: str) -> None:
    """Raises if the table has no objective of this name."""
    if name.strip().lower().replace("_", "-") not in objective_outlines():
        near = nearest(name, objective_outlines(), 0.5)
        raise ConfigError(
            f"Unknown objective {shown(name)}",
            do=f"Did you mean {near}?" if near else "Run `preftune objectives` to see all of them",
        )


# --- the laboratory ---


def problem_names() -> list[str]:
    return sorted(path.stem for path in (ROOT / "lab" / "problems").glob("*.yaml"))


def _check_problem(name: str) -> None:
    if name in problem_names() or Path(name).is_file():
        return
    near = nearest(name, problem_names(), 0.5)
    raise ConfigError(
        "There is no such problem",
        got=name,
        expected=f"a YAML file, or one of {', '.join(problem_names())}",
        do=f"Did you mean {near}?" if near else None,
    )


def _check_lab(action: str, names: Sequence[str]) -> None:
    if action not in LAB_ACTION_NAMES:
        near = nearest(action, LAB_ACTION_NAMES, 0.5)
        raise ConfigError(
            "There is no such action",
            got=action,
            expected=", ".join(LAB_ACTION_NAMES),
            do=f"Did you mean preftune lab {near}?" if near else None,
        )
    if action == "run":
        for name in names:
            _check_problem(name)
    if action == "show":
        text = (ROOT / "lab" / "criteria.yaml").read_text(encoding="utf-8")
        known = [*re.findall(r"^(\w+):", text, re.MULTILINE), *problem_names()]
        for name in names:
            check_lab_name(name, known)


def check_lab_name(name: str, known: Sequence[str]) -> None:
    """Raises if none of the experiments and problems has this name."""
    if name not in known:
        near = nearest(name, known, 0.5)
        raise ConfigError(
            "There is no such experiment or problem",
            got=name or "nothing",
            do=f"Did you mean {near}?" if near else "`preftune lab list` lists them",
        )


# --- pages ---


def page_paths() -> dict[str, Path]:
    """Name of each installed page -> its file; the name is the path without `.md`."""
    root = ROOT / "pages"
    if not root.is_dir():  # a checkout on a system without symbolic links
        raise ConfigError("The documentation is not installed", do="Read the folder docs of the repository")
    paths = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.glob("**/*.md")}
    return {name: paths[name] for name in sorted(paths) if not name.startswith("dev/")}


def page_named(text: str, pages: Iterable[str]) -> str:
    """The full name of a page from its name, its last part, or a file name; a ConfigError if there is none."""
    wanted = text.strip().lower().removeprefix("docs/").removesuffix(".md").replace("-", "_")
    last_parts: dict[str, str] = {}
    for name in pages:  # a page outside of a folder wins over one of the same name inside
        last_parts.setdefault(name.rpartition("/")[2].replace("-", "_"), name)
    full_names = {name.replace("-", "_"): name for name in pages}
    names = last_parts | full_names
    if wanted not in names:
        near = nearest(wanted, names, 0.5)
        raise ConfigError(
            f"There is no page {shown(text)}",
            do=f"Did you mean preftune docs {names[near]}?" if near else "preftune docs lists the pages",
        )
    return names[wanted]


# --- the user's own files ---


def _check_config(name: str) -> None:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"{name} does not exist", expected="a YAML or JSON file of another tool")
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"{name} is no configuration",
            got=path.suffix or "no ending",
            expected="a .yaml, .yml or .json file of TRL, LLaMA-Factory, axolotl or ms-swift",
        )


def _check_own_code(name: str, what: str) -> None:
    """`module:attribute` or `path/to/file.py:attribute`, as far as files show it without running them."""
    source, _, attribute = name.rpartition(":")
    whole = f"{what.capitalize()} {name!r}"
    if source.endswith(".py"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise ConfigError(f"{whole} cannot be found: there is no file {shown(source)}")
    else:
        path = _module_path(source, whole)
    known = None if path is None else _top_names(path)
    if known is not None and attribute not in known:
        near = nearest(attribute, known, 0.5)
        raise ConfigError(
            f"{whole} cannot be found: {source!r} has no attribute {attribute!r}",
            do=f"Did you mean {near}?" if near else None,
        )


def _module_path(source: str, whole: str) -> Path | None:
    """The file of a module that is not in a package; None if only importing shows it."""
    top = source.partition(".")[0]
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if found is None:
        local, attribute = Path(*source.split(".")).with_suffix(".py"), whole.rpartition(":")[2].strip("'")
        raise ConfigError(
            f"{whole} cannot be found: there is no module {source!r}",
            do=f"Use {local.as_posix()}:{attribute}"
            if local.is_file()
            else "Install the module, or give the path of its file: 'path/to/file.py:NAME'",
        )
    is_plain = "." not in source and str(found.origin).endswith(".py")
    return Path(str(found.origin)) if is_plain else None


def _top_names(path: Path) -> set[str] | None:
    """Names that a file defines at its top; None if they show only when it runs."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and node.id in ("globals", "exec", "setattr"):
            return None
    return None if "*" in names or "__getattr__" in names else names
